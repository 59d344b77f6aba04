/* What is measured: time, the proxy's CPU and memory, and how long each answer took. */
#ifndef METER_H
#define METER_H
#include <stddef.h>

#define MAX_PIDS 64

struct meter {
    int pids[MAX_PIDS], n_pids;      /* all processes of the proxy */
    int measuring;                   /* what comes before is warm-up, and is not counted */
    long answers, errors;            /* answers that were as they must be, and everything else */
    long long bytes_in, bytes_out;   /* application bytes, after and before TLS */
    char first_error[160];
    float *latencies;                /* seconds; the first MAX_LATENCIES answers */
    long n_latencies;
};

double now(void);
void meter_pids(struct meter *meter, const char *list);
double meter_cpu(const struct meter *meter);   /* seconds of user and system time */
long meter_pss(const struct meter *meter);     /* KiB; what processes share counts once */
void meter_answer(struct meter *meter, double since);
void meter_error(struct meter *meter, const char *format, ...) __attribute__((format(printf, 2, 3)));
double meter_quantile(struct meter *meter, double part);  /* seconds; sorts */
void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
#endif
