/* The server behind every proxy: HTTP/1.1 on one port, gRPC over h2c on another, and as little work as can be.
 *
 * upstream DOWNLOAD_BYTES prints its two ports. HTTP/1.1: a path with /snapshots/ is answered with DOWNLOAD_BYTES, one
 * that ends in /query with 2048 of JSON, any other with 200, once the request's body is there. Heads are those of Qdrant's
 * actix-web: its fields, another date each second, and chunks where the client accepts gzip (which it then says of them,
 * and nobody here looks). Where heads never changed, a proxy that remembers them would look better than it is. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "upstream.h"

#define SMALL 200
#define SEARCH 2048
#define LARGE_PIECE (1 << 20)
#define TEXT "A title, and as much of the text that it is of as makes ten points with their payload an answer of two kilobytes"

struct answer {
    char head[320];
    size_t head_size, end_size;      /* what stands before the body, and after it */
    long body;
    const char *content;
};

enum { PLAIN, CHUNKED };

static struct answer small[2], search[2], download;
static const char end[] = "\r\n0\r\n\r\n";
static char *content;                /* LARGE_PIECE bytes, of which other bodies are made */
static char points[SEARCH + 1];      /* what a search finds, as Qdrant writes it */
char date[30];
static int epoll;

void fail(const char *what) {
    perror(what);
    exit(2);
}

/* As many points as there is room for; the last one has a longer text. */
static void points_init(void) {
    static const char begin[] = "{\"result\":{\"points\":[", end[] = "]},\"status\":\"ok\",\"time\":0.000729}";
    static const char point[] = "{\"id\":%d,\"version\":3,\"score\":0.7%d5,\"payload\":{\"title\":\"" TEXT "%*s\",\"year\":2024}}";
    size_t left = SEARCH - (sizeof begin - 1) - (sizeof end - 1);
    char *at = points + sprintf(points, "%s", begin);
    for (int id = 1001, one = snprintf(NULL, 0, point, id, id, 0, ""); left; id++) {
        int pad = left < 2 * (size_t)(one + 1) ? (int)left - one : 0;
        at += sprintf(at, point, id, id, pad, "");
        left -= one + pad;
        if (left) *at++ = ',', left--;
    }
    strcpy(at, end);
}

static void answer_init(struct answer *a, long body, const char *content, const char *type, int chunked) {
    static const char cors[] = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
    char *at = a->head + sprintf(a->head, "HTTP/1.1 200 OK\r\n");
    if (chunked) at += sprintf(at, "transfer-encoding: chunked\r\ncontent-encoding: gzip\r\nvary: accept-encoding, %s\r\n", cors);
    else at += sprintf(at, "content-length: %ld\r\nvary: %s\r\n", body, cors);
    at += sprintf(at, "content-type: %s\r\ndate: %s\r\n\r\n", type, date);
    if (chunked) at += sprintf(at, "%lx\r\n", body);
    a->head_size = at - a->head;
    a->end_size = chunked ? sizeof end - 1 : 0;
    a->body = body;
    a->content = content;
}

/* All heads anew, when a second is over: they differ in nothing but the date, so that one may be under way. */
static void tell_time(long download_size) {
    static time_t told;
    time_t now = time(NULL);
    if (now == told) return;
    told = now;
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime(&now));
    for (int chunked = PLAIN; chunked <= CHUNKED; chunked++) {
        answer_init(&small[chunked], SMALL, content, "application/json", chunked);
        answer_init(&search[chunked], SEARCH, points, "application/json", chunked);
    }
    answer_init(&download, download_size, content, "application/octet-stream", PLAIN);
}

static long whole(const struct answer *a) { return a->head_size + a->body + a->end_size; }

/* What is left of the answer. -1: the connection is lost. */
static int http1_flush(struct peer *p) {
    while (p->out_left > 0) {
        const struct answer *a = p->answer;
        struct iovec parts[3];
        long done = whole(a) - p->out_left, body = p->out_left - a->end_size;
        int n_parts = 0;
        if (done < (long)a->head_size) {
            parts[n_parts++] = (struct iovec){(char *)a->head + done, a->head_size - done};
            body = a->body;
        }
        if (body > 0) {
            const char *at = a->content == content ? content : a->content + a->body - body;
            parts[n_parts++] = (struct iovec){(char *)at, body < LARGE_PIECE ? body : LARGE_PIECE};
        }
        if (body <= LARGE_PIECE && a->end_size) {
            size_t left = body >= 0 ? a->end_size : (size_t)p->out_left;
            parts[n_parts++] = (struct iovec){(char *)end + a->end_size - left, left};
        }
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = n_parts};
        ssize_t n = sendmsg(p->fd, &message, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN ? 0 : -1;
        p->out_left -= n;
    }
    return 0;
}

static int http1_answer(struct peer *p) {
    const char *line = memchr(p->in, '\r', p->in_size), *path = memchr(p->in, ' ', p->in_size), *stop;
    if (!line || !path || !(stop = memchr(path + 1, ' ', line - path - 1))) return -1;
    const char *query = memchr(path, '?', stop - path);
    if (query) stop = query;
    int chunked = strcasestr(p->in, "\r\naccept-encoding: gzip") ? CHUNKED : PLAIN;
    p->answer = memmem(path, stop - path, "/snapshots/", 11) ? &download
              : stop - path > 6 && !memcmp(stop - 6, "/query", 6) ? &search[chunked] : &small[chunked];
    p->out_left = whole(p->answer);
    p->in_size = 0;
    return http1_flush(p);
}

/* A whole head: how much body comes with it. */
static int http1_head(struct peer *p) {
    char *length, *coding;
    p->in[p->in_size] = 0;
    length = strcasestr(p->in, "\r\ncontent-length:");
    coding = strcasestr(p->in, "\r\ntransfer-encoding:");
    p->chunked = !!coding;
    p->chunk_end = 0;
    p->body_left = coding || !length ? 0 : atol(length + 17);
    return coding || p->body_left ? 0 : http1_answer(p);
}

static int http1_feed(struct peer *p, const char *b, long n) {
    const char *stop = b + n;
    while (b < stop) {
        if (p->body_left) {
            long take = stop - b < p->body_left ? stop - b : p->body_left;
            b += take;
            if (!(p->body_left -= take) && http1_answer(p)) return -1;
        } else if (p->chunked) {
            /* The last chunk's five bytes end the body: no content here looks like them. */
            static const char last[] = "0\r\n\r\n";
            p->chunk_end = *b == last[p->chunk_end] ? p->chunk_end + 1 : *b == last[0];
            b++;
            if (p->chunk_end == 5) {
                p->chunked = 0;
                if (http1_answer(p)) return -1;
            }
        } else {
            size_t from = p->in_size > 3 ? p->in_size - 3 : 0, take = stop - b;
            if (p->out_left) return -1;  /* a proxy pipelines, which this does not serve */
            if (p->in_size + take > IN - 1) take = IN - 1 - p->in_size;
            if (!take) return -1;
            memcpy(p->in + p->in_size, b, take);
            char *found = memmem(p->in + from, p->in_size + take - from, "\r\n\r\n", 4);
            if (found) take = found + 4 - p->in - p->in_size;
            p->in_size += take;
            b += take;
            if (found && http1_head(p)) return -1;
        }
    }
    return 0;
}

static int listen_on(int *port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    if (fd < 0 || bind(fd, (void *)&address, size) || listen(fd, 4096) || getsockname(fd, (void *)&address, &size)) fail("listen");
    *port = ntohs(address.sin_port);
    return fd;
}

static void accept_all(int listener, int http2) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct peer *p = calloc(1, sizeof *p);
        if (!p) fail("memory");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        p->fd = fd;
        p->http2 = http2;
        if (http2) h2_begin(p);
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = p};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

/* Edge-triggered: all that can be read and sent is, at each event. */
static void serve(struct peer *p) {
    static char buffer[1 << 18];
    ssize_t n;
    int lost = p->http2 ? h2_flush(p) : http1_flush(p);
    while (!lost && (n = recv(p->fd, buffer, sizeof buffer, 0)) != 0) {
        if (n < 0) {
            lost = errno != EAGAIN;
            if (!lost) return;
        } else {
            lost = p->http2 ? h2_feed(p, (unsigned char *)buffer, n) : http1_feed(p, buffer, n);
        }
    }
    close(p->fd);
    free(p->h2);
    free(p);
}

int main(int count, char **arguments) {
    int ports[2], http1 = listen_on(&ports[0]), http2 = listen_on(&ports[1]);
    struct epoll_event event = {.events = EPOLLIN}, events[256];
    signal(SIGPIPE, SIG_IGN);
    if (!(content = malloc(LARGE_PIECE))) fail("memory");
    memset(content, 'x', LARGE_PIECE);
    points_init();
    long download_size = count > 1 ? atol(arguments[1]) : 64L << 20;
    tell_time(download_size);
    epoll = epoll_create1(0);
    event.data.ptr = &http1;
    epoll_ctl(epoll, EPOLL_CTL_ADD, http1, &event);
    event.data.ptr = &http2;
    epoll_ctl(epoll, EPOLL_CTL_ADD, http2, &event);
    printf("%d %d\n", ports[0], ports[1]);
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(epoll, events, 256, -1);
        tell_time(download_size);
        for (int i = 0; i < n; i++) {
            void *who = events[i].data.ptr;
            if (who == &http1 || who == &http2) accept_all(*(int *)who, who == &http2);
            else serve(who);
        }
    }
}
