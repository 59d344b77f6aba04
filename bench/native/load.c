/* A load generator of clients with certificates. Closed loop: each connection asks again when it is answered.
 *
 * Modes: keep (connections are kept), new (each request on a new one, with a full handshake), idle (each connection is
 * asked once, then kept until this process is ended: what does it cost in memory?). Prints one JSON object. Answers that
 * are not as they must be are errors, and never counted as requests. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn.h"

#define PIECE 131072
#define OPENING 32        /* handshakes at a time of the idle mode */
#define PATIENCE 90.0     /* seconds for all of them */

struct options options = {.host = "127.0.0.1", .status = 200, .depth = 1, .streams = 8, .fields = "fixed"};
struct meter meter;

static const struct protocol *protocol = &http1;
static enum { KEEP, NEW, IDLE } mode;
static SSL_CTX *context;
static int epoll, resting, served;
static long requests;         /* to be answered, and then it ends: no matter how long that takes */
static struct sockaddr_in address;

char *read_file(const char *path, size_t *size) {
    FILE *file = path ? fopen(path, "rb") : NULL;
    if (!file || fseek(file, 0, SEEK_END)) fail("cannot read %s", path ? path : "a request: --request FILE");
    *size = ftell(file);
    rewind(file);
    char *data = malloc(*size + 1);
    if (!data || fread(data, 1, *size, file) != *size) fail("cannot read %s", path);
    fclose(file);
    return data;
}

static void await(struct conn *c, int events) {
    if (c->events == events) return;
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
    c->events = events;
}

static void open_conn(struct conn *c) {
    int on = 1;
    if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0) fail("socket: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (mode == NEW) {
        /* A reset at the end leaves no TIME_WAIT behind, which would use up the local ports. */
        struct linger none = {1, 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    }
    if (connect(c->fd, (void *)&address, sizeof address) && errno != EINPROGRESS) fail("connect: %s", strerror(errno));
    if (!(c->ssl = SSL_new(context))) fail("SSL_new");
    SSL_set_fd(c->ssl, c->fd);
    SSL_set_connect_state(c->ssl);
    SSL_set_tlsext_host_name(c->ssl, "localhost");
    c->state = CONNECTING;
    c->events = EPOLLOUT;
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
}

static void close_conn(struct conn *c) {
    SSL_set_shutdown(c->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    SSL_free(c->ssl);
    close(c->fd);
    c->ssl = NULL;
    c->state = CLOSED;
    ERR_clear_error();
}

static void reopen(struct conn *c) {
    close_conn(c);
    open_conn(c);
}

/* Whether the step is to be repeated when the socket allows it; what failed is told. */
static int waits(struct conn *c, int result, const char *what) {
    switch (SSL_get_error(c->ssl, result)) {
        case SSL_ERROR_WANT_READ:
            await(c, EPOLLIN);
            return 1;
        case SSL_ERROR_WANT_WRITE:
            await(c, EPOLLOUT | EPOLLIN);
            return 1;
        case SSL_ERROR_ZERO_RETURN:
            meter_error(&meter, "%s: the server ended the connection", what);
            return 0;
        default: {
            const char *reason = ERR_reason_error_string(ERR_peek_error());
            meter_error(&meter, "%s: %s", what, reason ? reason : errno ? strerror(errno) : "cut");
            return 0;
        }
    }
}

/* Sends what there is. -1: the connection failed; 0: it waits; 1: all is sent. */
static int flush(struct conn *c) {
    while (c->out_done < c->out_size) {
        size_t left = c->out_size - c->out_done, written;
        int r = SSL_write_ex(c->ssl, c->out + c->out_done, left > PIECE ? PIECE : left, &written);
        if (r != 1) return waits(c, r, "sending") ? 0 : -1;
        c->out_done += written;
        if (meter.measuring) meter.bytes_out += written;
    }
    protocol->sent(c);
    return 1;
}

static void pump(struct conn *c) {
    static unsigned char buffer[PIECE];
    size_t size;
    int r;
    if (c->state == CONNECTING) {
        errno = 0;
        if ((r = SSL_do_handshake(c->ssl)) != 1) {
            if (!waits(c, r, "handshake")) reopen(c);
            return;
        }
        c->state = TALKING;
        protocol->begin(c);
    }
    for (;;) {
        errno = 0;
        if (c->state == TALKING && c->out_done < c->out_size && flush(c) < 0) return reopen(c);
        if ((r = SSL_read_ex(c->ssl, buffer, sizeof buffer, &size)) != 1) {
            /* Where something is unsent, flush has asked for both directions. */
            if (SSL_get_error(c->ssl, r) == SSL_ERROR_WANT_READ && c->out_done < c->out_size) return;
            if (!waits(c, r, c->state == RESTING ? "resting" : "receiving")) {
                if (c->state == RESTING) close_conn(c);
                else reopen(c);
            }
            return;
        }
        if (meter.measuring) meter.bytes_in += size;
        served += !c->served;
        c->served = 1;
        switch (protocol->feed(c, buffer, size)) {
            case FAILED:
                return reopen(c);
            case MORE:
                break;
            case DONE:
                if (mode == NEW) {
                    return reopen(c);
                } else if (mode == IDLE) {
                    c->state = RESTING;
                    resting++;
                } else {
                    protocol->again(c);
                }
        }
    }
}

static void turn(int timeout_ms) {
    struct epoll_event events[256];
    int n = epoll_wait(epoll, events, 256, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (c->state != CLOSED) pump(c);
    }
}

static void turns_for(double seconds) {
    for (double end = now() + seconds; now() < end;) turn(20);
}

static void let_rest(struct conn *conns, int n) {
    double end = now() + PATIENCE;
    for (int opened = 0; resting < n && now() < end && meter.errors < 10;) {
        while (opened < n && opened - resting < OPENING) open_conn(&conns[opened++]);
        turn(20);
    }
}

static void run_idle(struct conn *conns, int n, double settle) {
    long before = meter_pss(&meter);
    let_rest(conns, n);
    turns_for(settle);
    long after = meter_pss(&meter);
    double cpu = meter_cpu(&meter);
    turns_for(1.0);
    cpu = meter_cpu(&meter) - cpu;
    printf("{\"connections\": %d, \"errors\": %ld, \"error\": \"%s\", \"pss_before_kb\": %ld, \"pss_kb\": %ld, \"idle_cpu\": %.6f}\n",
           resting, meter.errors, meter.first_error, before, after, cpu);
    fflush(stdout);
    for (;;) turn(1000);
}

static void run_busy(struct conn *conns, int n, double warm_up, double seconds) {
    for (int i = 0; i < n; i++) open_conn(&conns[i]);
    if (!requests) turns_for(warm_up);
    /* Where the machine is slow, handshakes of the beginning would be counted as requests' work. */
    for (double end = now() + PATIENCE; !requests && served < n && now() < end && meter.errors < 10;) turn(20);
    double began = now(), cpu = meter_cpu(&meter);
    meter.measuring = 1;
    /* Not less than one answer: a round of large bodies ends with the one that is under way. */
    do requests ? turn(20) : turns_for(seconds);
    while (meter.answers < (requests ? requests : 1) && now() - began < PATIENCE && meter.errors < 10);
    double elapsed = now() - began;
    cpu = meter_cpu(&meter) - cpu;
    printf("{\"requests\": %ld, \"errors\": %ld, \"error\": \"%s\", \"seconds\": %.6f, \"cpu\": %.9f, \"p50\": %.6f, \"p99\": %.6f, "
           "\"bytes_in\": %lld, \"bytes_out\": %lld, \"pss_kb\": %ld}\n",
           meter.answers, meter.errors, meter.first_error, elapsed, cpu, meter_quantile(&meter, .5), meter_quantile(&meter, .99),
           meter.bytes_in, meter.bytes_out, meter_pss(&meter));
}

static void tls(const char *ca, const char *certificate, const char *key, const char *groups) {
    context = SSL_CTX_new(TLS_client_method());
    if (!SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) || SSL_CTX_load_verify_locations(context, ca, NULL) != 1 ||
        SSL_CTX_use_certificate_chain_file(context, certificate) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1)
        fail("cannot use the certificates: %s", ERR_reason_error_string(ERR_peek_error()));
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    if (SSL_CTX_set1_groups_list(context, groups) != 1) fail("OpenSSL %s has no group %s", OpenSSL_version(OPENSSL_VERSION_STRING), groups);
    SSL_CTX_set_alpn_protos(context, (const unsigned char *)protocol->alpn, strlen(protocol->alpn));
}

int main(int count, char **arguments) {
    const char *ca = "ca.pem", *certificate = "client.pem", *key = "client.key", *groups = "X25519";
    double seconds = 1, warm_up = .25, settle = 2;
    int connections = 64, option;
    enum { PORT = 256, MODE, PROTOCOL, CONNECTIONS, SECONDS, WARM_UP, SETTLE, REQUEST, DEPTH, STATUS, LENGTH, PIDS, CA, CERT, KEY, STREAMS, AUTHORITY, PATH, FIELDS, GROUPS, REQUESTS };
    const struct option known[] = {
        {"port", 1, 0, PORT}, {"mode", 1, 0, MODE}, {"protocol", 1, 0, PROTOCOL}, {"connections", 1, 0, CONNECTIONS},
        {"seconds", 1, 0, SECONDS}, {"warm-up", 1, 0, WARM_UP}, {"settle", 1, 0, SETTLE}, {"request", 1, 0, REQUEST},
        {"depth", 1, 0, DEPTH}, {"status", 1, 0, STATUS}, {"length", 1, 0, LENGTH}, {"pids", 1, 0, PIDS}, {"ca", 1, 0, CA},
        {"cert", 1, 0, CERT}, {"key", 1, 0, KEY}, {"streams", 1, 0, STREAMS}, {"authority", 1, 0, AUTHORITY},
        {"path", 1, 0, PATH}, {"fields", 1, 0, FIELDS}, {"groups", 1, 0, GROUPS}, {"requests", 1, 0, REQUESTS}, {0}};
    while ((option = getopt_long(count, arguments, "", known, NULL)) != -1) switch (option) {
        case PORT: options.port = atoi(optarg); break;
        case MODE: mode = !strcmp(optarg, "new") ? NEW : !strcmp(optarg, "idle") ? IDLE : KEEP; break;
        case PROTOCOL: protocol = !strcmp(optarg, "grpc") ? &grpc : &http1; break;
        case CONNECTIONS: connections = atoi(optarg); break;
        case SECONDS: seconds = atof(optarg); break;
        case WARM_UP: warm_up = atof(optarg); break;
        case SETTLE: settle = atof(optarg); break;
        case REQUEST: options.request = optarg; break;
        case DEPTH: options.depth = atoi(optarg); break;
        case STATUS: options.status = atoi(optarg); break;
        case LENGTH: options.length = atol(optarg); break;
        case PIDS: meter_pids(&meter, optarg); break;
        case CA: ca = optarg; break;
        case CERT: certificate = optarg; break;
        case KEY: key = optarg; break;
        case STREAMS: options.streams = atoi(optarg); break;
        case AUTHORITY: options.authority = optarg; break;
        case PATH: options.path = optarg; break;
        case FIELDS: options.fields = optarg; break;
        case GROUPS: groups = optarg; break;
        case REQUESTS: requests = atol(optarg); break;
        default: return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(options.port)};
    if (inet_pton(AF_INET, options.host, &address.sin_addr) != 1) fail("not an address: %s", options.host);
    tls(ca, certificate, key, groups);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct conn *conns = calloc(connections, sizeof *conns);
    if (!conns) fail("out of memory");
    if (mode == IDLE) run_idle(conns, connections, settle);
    else run_busy(conns, connections, warm_up, seconds);
    return 0;
}
