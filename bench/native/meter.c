#define _GNU_SOURCE
#include "meter.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_LATENCIES 2000000

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

void meter_pids(struct meter *meter, const char *list) {
    char *copy = strdup(list), *rest = copy, *each;
    while ((each = strsep(&rest, ",")) && meter->n_pids < MAX_PIDS)
        if (*each) meter->pids[meter->n_pids++] = atoi(each);
    free(copy);
}

/* The CPU clock of another process: all its threads, those that ended too, in nanoseconds. /proc/PID/stat says the
 * same in hundredths of a second, and /proc/PID/task/N/schedstat is not in every kernel. */
double meter_cpu(const struct meter *meter) {
    double sum = 0;
    for (int i = 0; i < meter->n_pids; i++) {
        clockid_t clock;
        struct timespec t;
        if (clock_getcpuclockid(meter->pids[i], &clock) || clock_gettime(clock, &t))
            fail("process %d of the proxy has ended", meter->pids[i]);
        sum += t.tv_sec + t.tv_nsec * 1e-9;
    }
    return sum;
}

long meter_pss(const struct meter *meter) {
    long sum = 0;
    for (int i = 0; i < meter->n_pids; i++) {
        char path[64], line[256];
        long value;
        snprintf(path, sizeof path, "/proc/%d/smaps_rollup", meter->pids[i]);
        FILE *file = fopen(path, "r");
        if (!file) fail("cannot read %s", path);
        while (fgets(line, sizeof line, file))
            if (sscanf(line, "Pss: %ld", &value) == 1) sum += value;
        fclose(file);
    }
    return sum;
}

void meter_answer(struct meter *meter, double since) {
    if (!meter->measuring) return;
    if (!meter->latencies && !(meter->latencies = malloc(MAX_LATENCIES * sizeof(float)))) fail("out of memory");
    meter->answers++;
    if (meter->n_latencies < MAX_LATENCIES) meter->latencies[meter->n_latencies++] = (float)(now() - since);
}

/* Errors of the warm-up count as well: what does not work is not measured. */
void meter_error(struct meter *meter, const char *format, ...) {
    if (!meter->errors++) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(meter->first_error, sizeof meter->first_error, format, arguments);
        va_end(arguments);
        for (char *c = meter->first_error; *c; c++)
            if (*c == '"' || *c == '\\' || *c < ' ' || *c > '~') *c = '.';  /* it stands in JSON */
    }
}

static int compare(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

double meter_quantile(struct meter *meter, double part) {
    if (!meter->n_latencies) return 0;
    qsort(meter->latencies, meter->n_latencies, sizeof(float), compare);
    return meter->latencies[(long)((meter->n_latencies - 1) * part)];
}
