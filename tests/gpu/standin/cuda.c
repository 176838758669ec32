/* A stand-in for libcuda.so.1 with the calls that cria makes through cuda.core, and their state machine.
   Signatures: cuda.h of CUDA 13. It writes every call to the file $STANDIN_LOG. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600 };
enum { RUNNING, LOCKED, CHECKPOINTED, FAILED };

typedef struct { unsigned char bytes[16]; } Uuid;
typedef struct { unsigned int timeout, reserved0; uint64_t reserved1[7]; } LockArgs;
typedef struct { Uuid old, new; } Pair;
typedef struct { Pair *pairs; unsigned int count; char rest[52]; } RestoreArgs;

static struct { int pid, state; } known[] = {{101, RUNNING}, {102, RUNNING}};
static int initialised;

static void say(const char *call, int pid, long number) {
    FILE *log = fopen(getenv("STANDIN_LOG"), "a");
    fprintf(log, "%s %d %ld\n", call, pid, number);
    fclose(log);
}

static int *state_of(int pid) {
    for (unsigned i = 0; i < 2; i++)
        if (known[i].pid == pid) return &known[i].state;
    return NULL;
}

static int move(int pid, int before, int after) {
    int *state = state_of(pid);
    if (!state) return INVALID_VALUE;
    if (*state != before) return ILLEGAL_STATE;
    *state = after;
    return SUCCESS;
}

int cuInit(unsigned int flags) { initialised = 1; say("init", 0, flags); return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuGetErrorName(int error, const char **name) {
    *name = error == ILLEGAL_STATE ? "CUDA_ERROR_ILLEGAL_STATE" : error == NOT_READY ? "CUDA_ERROR_NOT_READY" : "CUDA_ERROR_INVALID_VALUE";
    return SUCCESS;
}
int cuGetErrorString(int error, const char **text) { (void)error; *text = "the stand-in says no"; return SUCCESS; }

int cuCheckpointProcessGetState(int pid, int *state) {
    if (!state_of(pid)) return INVALID_VALUE;
    *state = *state_of(pid);
    return SUCCESS;
}
int cuCheckpointProcessGetRestoreThreadId(int pid, int *tid) {
    if (!state_of(pid)) return INVALID_VALUE;
    *tid = pid + 1;
    return SUCCESS;
}
int cuCheckpointProcessLock(int pid, LockArgs *args) {
    say("lock", pid, args ? args->timeout : -1);
    return args && args->timeout == 1 ? NOT_READY : move(pid, RUNNING, LOCKED);
}
int cuCheckpointProcessCheckpoint(int pid, void *args) {
    (void)args;
    say("checkpoint", pid, 0);
    return move(pid, LOCKED, CHECKPOINTED);
}
int cuCheckpointProcessRestore(int pid, RestoreArgs *args) {
    say("restore", pid, args ? args->count : 0);
    if (args && args->count)  /* the last bytes of the first pair, to see that they arrive */
        say("pair", args->pairs[0].old.bytes[15], args->pairs[0].new.bytes[15]);
    return initialised ? move(pid, CHECKPOINTED, LOCKED) : INVALID_VALUE;
}
int cuCheckpointProcessUnlock(int pid, void *args) {
    (void)args;
    say("unlock", pid, 0);
    return move(pid, LOCKED, RUNNING);
}

int cuGetProcAddress_v2(const char *symbol, void **found, int version, uint64_t flags, int *status) {
    (void)version; (void)flags;
    *found = dlsym(RTLD_DEFAULT, symbol);
    if (!*found) *found = dlsym(dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_NOW), symbol);
    if (status) *status = *found ? 0 : 1;
    return *found ? SUCCESS : NOT_FOUND;
}
int cuGetProcAddress(const char *symbol, void **found, int version, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, found, version, flags, NULL);
}
