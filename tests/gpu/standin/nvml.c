/* A stand-in for libnvidia-ml.so.1: two GPUs, on the first of which process 101 computes. nvml.h of CUDA 13. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } Memory;
typedef struct { unsigned int pid; unsigned long long used; unsigned int instance, compute; } Process;

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { (void)error; return "the stand-in says no"; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    *device = (void *)(uintptr_t)(index + 1);
    return SUCCESS;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-00000000-0000-0000-0000-0000000000%02d", (int)(uintptr_t)device);
    return SUCCESS;
}
int nvmlDeviceGetName(void *device, char *name, unsigned int length) {
    (void)device;
    snprintf(name, length, "Stand-In 9000");
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    (void)device;
    memory->total = 8ULL << 30;
    memory->reserved = memory->used = 0;
    memory->free = memory->total;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(void *device, unsigned int *now, unsigned int *next) {
    (void)now; (void)next;
    *now = *next = 0;
    return device == (void *)1 ? NOT_SUPPORTED : SUCCESS;
}
int nvmlDeviceGetPersistenceMode(void *device, unsigned int *on) { *on = device == (void *)1; return SUCCESS; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, Process *found) {
    unsigned int room = *count;
    *count = device == (void *)1;
    if (room < *count) return INSUFFICIENT_SIZE;
    if (*count) {
        memset(found, 0, sizeof *found);
        found->pid = 101;
        found->used = 3ULL << 20;
    }
    return SUCCESS;
}
