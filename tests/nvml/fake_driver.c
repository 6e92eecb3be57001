/* libnvidia-ml.so.1 for tests: boards whose power is a known function of time.
 *
 * What it plays is a text of `key=value` words, boards separated by ';', the first part being
 * the host: from the environment's FAKE_NVML, or by fake_configure(). Keys are those of the
 * tables HOST and BOARD below (tests/fake_nvml.py writes it and says what they mean). Time is
 * set by fake_set_time(); with FAKE_REAL_TIME it is CLOCK_MONOTONIC less FAKE_ORIGIN_S.
 *
 * Return codes and layouts follow nvml.h; handles die with the driver that gave them.
 */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9 };
enum { LOST = 15, WRONG_VERSION = 25 };
enum { MOST_BOARDS = 16, MOST_PROCESSES = 32 };
static const double EPOCH_S = 1.7e9; /* the wall clock at simulated time 0 */

typedef struct {
    double low, high, step, period, duty, phase;          /* the signal, W and s */
    double publish, publish_phase, window, average;       /* the sensor, s */
    double counter, counter_ret, offset, still, reset;    /* the energy counter: kind, code, J, s, s */
    double instant_ret, average_ret, usage_ret, fields_ret, memory_ret, module_ret;
    double memory, module;                                /* W of the memory; W beyond the board's own */
    double stamp, stamp_off;                              /* what a field's stamp means; s added to it */
    double lost, back, handle_ret;
    double mig, c2c, limit, temperature, sm, mem, pstate, reasons, ecc, ecc_mode, persistence, arch, state_ret;
    double processes_ret;
    int process_count;
    unsigned pid[MOST_PROCESSES];
    unsigned long long memory_bytes[MOST_PROCESSES];
    char uuid[96], name[96];
    long long summed_to;                                  /* publications in `summed` */
    double summed;                                        /* J the sensor saw */
} Board;

typedef struct { double init, call, unload, reload, reverse; } Host;
typedef struct { const char *key; size_t place; double other; } Key;

#define B(key, other) {#key, offsetof(Board, key), other}
static const Key BOARD[] = {
    B(low, 100), B(high, 100), B(step, INFINITY), B(period, 0), B(duty, 0.5), B(phase, 0),
    B(publish, 0.1), B(publish_phase, 0), B(window, 0.1), B(average, 1),
    B(counter, 1), B(counter_ret, 0), B(offset, 0), B(still, INFINITY), B(reset, INFINITY),
    B(instant_ret, 0), B(average_ret, 0), B(usage_ret, 0), B(fields_ret, 0), B(memory_ret, 3), B(module_ret, 3),
    B(memory, 0), B(module, 0), B(stamp, 0), B(stamp_off, 0),
    B(lost, INFINITY), B(back, INFINITY), B(handle_ret, 0),
    B(mig, -1), B(c2c, -1), B(limit, 700), B(temperature, 41), B(sm, 1980), B(mem, 2619), B(pstate, 0),
    B(reasons, 0), B(ecc, 0), B(ecc_mode, 1), B(persistence, 1), B(arch, 9), B(state_ret, 0), B(processes_ret, 0),
    {NULL, 0, 0}};
#define H(key, other) {#key, offsetof(Host, key), other}
static const Key HOST[] = {
    H(init, 0), H(call, 0), H(unload, INFINITY), H(reload, INFINITY), H(reverse, 0), {NULL, 0, 0}};

static Board boards[MOST_BOARDS];
static Host host;
static int board_count, configured, sessions;
static double simulated_s;

/* A handle names its board, the driver's life that gave it and whether the board had been back. */
typedef struct { int board, life, returned; } Handle;
static Handle handles[4096];
static int handle_count, session_life = -1;

static int real_time(void) { return getenv("FAKE_REAL_TIME") != NULL; }
static double clock_s(clockid_t id) { struct timespec t; clock_gettime(id, &t); return t.tv_sec + t.tv_nsec * 1e-9; }

double fake_now(void) {
    const char *origin = getenv("FAKE_ORIGIN_S");
    return real_time() ? clock_s(CLOCK_MONOTONIC) - (origin ? atof(origin) : 0) : simulated_s;
}
double fake_wall(void) { return real_time() ? clock_s(CLOCK_REALTIME) : EPOCH_S + simulated_s; }
void fake_set_time(double t_s) { simulated_s = t_s; }

static int assign(void *to, const Key *keys, const char *key, const char *value) {
    for (; keys->key; keys++)
        if (!strcmp(keys->key, key)) { *(double *)((char *)to + keys->place) = atof(value); return 1; }
    return 0;
}
static void defaults(void *to, const Key *keys) {
    for (; keys->key; keys++) *(double *)((char *)to + keys->place) = keys->other;
}
static void text(char *to, size_t size, const char *value) {
    snprintf(to, size, "%s", value);
    for (; *to; to++) if (*to == '_') *to = ' ';
}
static void processes(Board *b, char *list) {
    char *rest = NULL;
    b->process_count = 0;
    for (char *one = strtok_r(list, ",", &rest); one; one = strtok_r(NULL, ",", &rest)) {
        int k = b->process_count;
        if (k < MOST_PROCESSES && sscanf(one, "%u:%llu", &b->pid[k], &b->memory_bytes[k]) == 2) b->process_count++;
    }
}

/* 0, or the 1-based number of the part with a word that is not understood. */
int fake_configure(const char *script) {
    char *copy = strdup(script), *rest = NULL;
    int part = 0, wrong = 0;
    defaults(&host, HOST);
    board_count = 0;
    configured = 1;
    for (char *words = copy, *next; words && !wrong; words = next, part++) {
        Board *b = part ? &boards[board_count] : NULL;
        if ((next = strchr(words, ';'))) *next++ = 0;
        if (part > MOST_BOARDS) { wrong = part + 1; break; }
        if (b) {
            memset(b, 0, sizeof *b);
            defaults(b, BOARD);
            b->summed_to = -1;
            board_count++;
            snprintf(b->uuid, sizeof b->uuid, "GPU-%d0000000-aaaa", part);
            snprintf(b->name, sizeof b->name, "Fake H%d00", part);
        }
        for (char *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
            char *value = strchr(word, '=');
            if (!value) { wrong = part + 1; break; }
            *value++ = 0;
            if (b && !strcmp(word, "uuid")) snprintf(b->uuid, sizeof b->uuid, "%s", value);
            else if (b && !strcmp(word, "name")) text(b->name, sizeof b->name, value);
            else if (b && !strcmp(word, "processes")) processes(b, value);
            else if (!(b ? assign(b, BOARD, word, value) : assign(&host, HOST, word, value))) wrong = part + 1;
        }
    }
    free(copy);
    return wrong;
}

static void configure(void) {
    const char *script = getenv("FAKE_NVML");
    if (!configured && fake_configure(script ? script : ";")) {
        fprintf(stderr, "fake NVML: FAKE_NVML is not understood\n");
        abort();
    }
}

/* The signal and its integral from time 0 in closed form. */
static double joules(const Board *b, double t) {
    double low_j = b->low * t, more_w = b->high - b->low, x, whole, part;
    if (b->period <= 0) return low_j + more_w * fmax(0, t - b->step);
    x = (t - b->phase) / b->period;
    whole = floor(x);
    part = fmin(x - whole, b->duty);
    return low_j + more_w * b->period * (whole * b->duty + part);
}
static double watts(const Board *b, double t) {
    double x;
    if (b->period <= 0) return t >= b->step ? b->high : b->low;
    x = (t - b->phase) / b->period + 1e-9;
    return x - floor(x) < b->duty ? b->high : b->low;
}

/* Publication number k is at publish_phase + k publish; the last one is what a reader sees. */
static long long publication(const Board *b, double t) {
    return (long long)floor((t - b->publish_phase) / b->publish + 1e-9);
}
static double published_at(const Board *b, double t) {
    return b->publish > 0 ? b->publish_phase + publication(b, t) * b->publish : t;
}
static double seen(const Board *b, double t) {
    return b->window > 0 ? (joules(b, t) - joules(b, t - b->window)) / b->window : watts(b, t);
}
static double instant_w(const Board *b, double t) { return seen(b, published_at(b, t)); }
static double average_w(const Board *b, double t) {
    double end = published_at(b, t), sum = 0;
    int n = b->publish > 0 ? (int)lround(b->average / b->publish) : 0;
    if (n < 1) return (joules(b, end) - joules(b, end - b->average)) / b->average;
    for (int k = 0; k < n; k++) sum += seen(b, end - k * b->publish);
    return sum / n;
}
/* What a counter that multiplies each published power by the period has counted since time 0. */
static double summed_j(Board *b, double t) {
    long long last = publication(b, t), first = publication(b, 0);
    if (b->summed_to < 0 || b->summed_to > last) { b->summed_to = first; b->summed = 0; }
    while (b->summed_to < last) b->summed += b->publish * seen(b, b->publish_phase + ++b->summed_to * b->publish);
    return b->summed;
}
static double counted_j(Board *b, double t) {
    double at = published_at(b, t);
    if (b->counter == 2) return summed_j(b, t);
    return joules(b, at) - joules(b, 0) + (b->counter == 3 ? b->module * at : 0);
}
static double counter_j(Board *b, double t) { /* a driver that is loaded counts from 0 */
    double until = fmin(t, b->still), from = t >= host.reload ? host.reload : -INFINITY;
    if (t >= b->reset) from = fmax(from, b->reset);
    if (isfinite(from)) return counted_j(b, fmax(until, from)) - counted_j(b, from);
    return b->offset + counted_j(b, until);
}

/* The driver: lives from one loading to the next; each call takes host.call seconds. */
static int life(void) { return fake_now() >= host.reload ? 1 : 0; }
static int driver_ret(void) {
    double t = fake_now();
    if (t >= host.unload && t < host.reload) return NO_DRIVER;
    return OK;
}
static int session_ret(void) { return !sessions || session_life != life() || driver_ret() ? UNINITIALIZED : OK; }
static int returned(const Board *b) { return fake_now() >= b->back; }

static int reach(const Handle *h, Board **b) {
    int ret = session_ret();
    double t;
    if (!real_time()) simulated_s += host.call / 2;
    t = fake_now();
    if (ret) return ret;
    if (!h || h->life != session_life) return INVALID;
    *b = &boards[h->board];
    if ((t >= (*b)->lost && t < (*b)->back) || h->returned != returned(*b)) return LOST;
    return OK;
}
static int answered(int ret) {
    if (!real_time()) simulated_s += host.call / 2;
    return ret;
}
static int handle_of(int board, Handle **h) {
    Board *b = &boards[board];
    double t = fake_now();
    if (b->handle_ret) return (int)b->handle_ret;
    if (t >= b->lost && t < b->back) return LOST;
    *h = &handles[handle_count++ % 4096];
    (*h)->board = board; (*h)->life = session_life; (*h)->returned = returned(b);
    return OK;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    configure();
    if (host.init) return (int)host.init;
    if (driver_ret()) return driver_ret();
    if (!sessions++) session_life = life();
    return OK;
}
int nvmlShutdown(void) {
    if (!sessions) return UNINITIALIZED;
    sessions--;
    return OK;
}
const char *nvmlErrorString(int ret) { static char s[32]; snprintf(s, sizeof s, "error %d", ret); return s; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) {
    snprintf(s, n, life() ? "570.02" : "570.01");
    return session_ret();
}
int nvmlDeviceGetCount_v2(unsigned *n) { *n = board_count; return session_ret(); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle **h) {
    if (session_ret()) return session_ret();
    if ((int)index >= board_count) return INVALID;
    return handle_of(host.reverse && life() ? board_count - 1 - (int)index : (int)index, h);
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Handle **h) {
    if (session_ret()) return session_ret();
    for (int k = 0; k < board_count; k++) if (!strcmp(boards[k].uuid, uuid)) return handle_of(k, h);
    return NOT_FOUND;
}

#define ASK(h) Board *b; int ret = reach(h, &b); if (ret) return answered(ret)
#define NUMBER(function, type, value, code) \
    int function(const Handle *h, type *out) { \
        ASK(h); \
        if (code) return answered((int)(code)); \
        *out = (type)(value); \
        return answered(OK); \
    }

int nvmlDeviceGetUUID(const Handle *h, char *s, unsigned n) {
    ASK(h);
    snprintf(s, n, "%s", b->uuid);
    return answered(OK);
}
int nvmlDeviceGetName(const Handle *h, char *s, unsigned n) {
    ASK(h);
    snprintf(s, n, "%s", b->name);
    return answered(OK);
}
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, b->limit * 1000, b->state_ret)
NUMBER(nvmlDeviceGetPerformanceState, unsigned, b->pstate, b->state_ret)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, b->reasons, b->state_ret)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, b->reasons, b->state_ret) /* its old name */
NUMBER(nvmlDeviceGetPersistenceMode, unsigned, b->persistence, b->state_ret)
NUMBER(nvmlDeviceGetArchitecture, unsigned, b->arch, b->state_ret)
NUMBER(nvmlDeviceGetPowerUsage, unsigned, (b->arch < 7 ? instant_w : average_w)(b, fake_now()) * 1000 + 0.5,
       b->usage_ret)
NUMBER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, counter_j(b, fake_now()) * 1000 + 1e-6,
       b->counter ? b->counter_ret : UNSUPPORTED)
int nvmlDeviceGetMigMode(const Handle *h, unsigned *now, unsigned *pending) {
    ASK(h);
    if (b->mig < 0) return answered(UNSUPPORTED);
    *now = *pending = (unsigned)b->mig;
    return answered(OK);
}
int nvmlDeviceGetEccMode(const Handle *h, unsigned *now, unsigned *pending) {
    ASK(h);
    if (b->state_ret || b->ecc_mode < 0) return answered(UNSUPPORTED);
    *now = *pending = (unsigned)b->ecc_mode;
    return answered(OK);
}
typedef struct { unsigned enabled; } C2c;
int nvmlDeviceGetC2cModeInfoV(const Handle *h, C2c *info) {
    ASK(h);
    if (b->c2c < 0) return answered(UNSUPPORTED);
    info->enabled = (unsigned)b->c2c;
    return answered(OK);
}
int nvmlDeviceGetTemperature(const Handle *h, unsigned sensor, unsigned *out) {
    ASK(h);
    if (sensor || b->state_ret) return answered(UNSUPPORTED);
    *out = (unsigned)b->temperature;
    return answered(OK);
}
typedef struct { unsigned version, sensor; int temperature; } Temperature;
_Static_assert(sizeof(Temperature) == 12, "nvmlTemperature_v1_t");
int nvmlDeviceGetTemperatureV(const Handle *h, Temperature *out) {
    ASK(h);
    if (out->version != (1 << 24 | sizeof(Temperature))) return answered(WRONG_VERSION);
    if (out->sensor || b->state_ret) return answered(UNSUPPORTED);
    out->temperature = (int)b->temperature;
    return answered(OK);
}
int nvmlDeviceGetClockInfo(const Handle *h, unsigned clock, unsigned *out) { /* 1: SM, 2: memory */
    ASK(h);
    if ((clock != 1 && clock != 2) || b->state_ret) return answered(UNSUPPORTED);
    *out = (unsigned)(clock == 1 ? b->sm : b->mem);
    return answered(OK);
}
int nvmlDeviceGetTotalEccErrors(const Handle *h, unsigned type, unsigned counter, unsigned long long *out) {
    ASK(h);
    if (b->state_ret || b->ecc_mode != 1) return answered(UNSUPPORTED);
    *out = type == 1 && counter == 0 ? (unsigned long long)b->ecc : 0; /* uncorrected, since the driver was loaded */
    return answered(OK);
}

typedef struct { unsigned pid; unsigned long long memory_bytes; unsigned gpu_instance, compute_instance; } Process;
_Static_assert(sizeof(Process) == 24 && offsetof(Process, memory_bytes) == 8, "nvmlProcessInfo_v2_t");
static int tenants(const Board *b, unsigned *count, Process *out) {
    unsigned room = *count;
    if (b->processes_ret) return answered((int)b->processes_ret);
    *count = (unsigned)b->process_count;
    if (room < *count) return answered(TOO_SMALL);
    for (unsigned k = 0; k < *count; k++) out[k] = (Process){b->pid[k], b->memory_bytes[k], ~0u, ~0u};
    return answered(OK);
}
int nvmlDeviceGetComputeRunningProcesses_v3(const Handle *h, unsigned *count, Process *out) {
    ASK(h);
    return tenants(b, count, out);
}
int nvmlDeviceGetComputeRunningProcesses_v2(const Handle *h, unsigned *count, Process *out) {
    ASK(h);
    return tenants(b, count, out);
}
int nvmlSystemGetProcessName(unsigned pid, char *s, unsigned n) {
    if (session_ret()) return session_ret();
    if (pid >= 4000000) return NOT_FOUND;
    snprintf(s, n, pid == 255 ? "\xff\xfe" : "/opt/process-%u", pid); /* 255: no UTF-8 */
    return OK;
}

typedef struct {
    unsigned id, scope;
    long long stamp_us, latency_us;
    int type, ret;
    union { double d; unsigned ui; unsigned long long ull; } value;
} Field;
_Static_assert(sizeof(Field) == 40 && offsetof(Field, value) == 32, "nvmlFieldValue_t");
int nvmlDeviceGetFieldValues(const Handle *h, int n, Field *f) {
    ASK(h);
    double t = fake_now(), wall = fake_wall();
    if (b->fields_ret) return answered((int)b->fields_ret);
    for (int k = 0; k < n; k++) {
        int instant = f[k].id == 186;
        double w = instant ? instant_w(b, t) : average_w(b, t);
        f[k].type = 1;
        f[k].latency_us = 0;
        if (f[k].id != 185 && f[k].id != 186) f[k].ret = UNSUPPORTED;
        else if (f[k].scope == 0) f[k].ret = (int)(instant ? b->instant_ret : b->average_ret);
        else if (f[k].scope == 1) { f[k].ret = (int)b->module_ret; w += b->module; }
        else if (f[k].scope == 2) { f[k].ret = (int)b->memory_ret; w = b->memory; }
        else f[k].ret = INVALID;
        /* 0: the stamp is the publication's, 1: the call's, 2: there is none */
        f[k].stamp_us = b->stamp == 2 || f[k].ret ? 0
            : llround((wall - (b->stamp == 1 ? 0 : t - published_at(b, t)) + b->stamp_off) * 1e6);
        f[k].value.ull = 0;
        if (!f[k].ret) f[k].value.ui = (unsigned)(w * 1000 + 0.5);
    }
    return answered(OK);
}
