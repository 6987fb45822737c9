/* CUDA over POSIX shared memory: the functions of the runtime and of the driver that shared memory of clients needs.
 *
 * Strict where a GPU is: memory is touched only on its own device and within one allocation that is open here, and what
 * is copied to a device lies there only when the stream has been waited for.
 *
 * CUDA_STANDIN_DEVICES  how many devices there are (2)
 * CUDA_STANDIN_BLIND    when set, the driver does not tell how large an allocation is
 */

#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_HANDLE = 400 };
enum { TO_DEVICE = 1, TO_HOST = 2, MOST = 256, HANDLE_BYTES = 64 };
static const char MAGIC[8] = "standin";

typedef struct {
    char magic[8];
    char name[44];
    int device;
    uint64_t size;
} Inside;

_Static_assert(sizeof(Inside) == HANDLE_BYTES, "a handle is all that a process needs");

typedef struct {
    char bytes[HANDLE_BYTES];
} Handle;

typedef struct {
    Inside inside;
    char *base;
    int opened; /* how often, by a handle; 0 = it is this process's own */
} Allocation;

typedef struct Copy {
    struct Copy *next;
    char *target;
    size_t size;
    char data[];
} Copy;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Allocation known[MOST];
static Copy *first, **last = &first;
static int made;
static __thread int current, error;

static int devices(void)
{
    const char *text = getenv("CUDA_STANDIN_DEVICES");
    return text ? atoi(text) : 2;
}

static int told(int code)
{
    if (code)
        error = code;
    return code;
}

static Allocation *holding(const char *address, size_t size)
{
    for (Allocation *one = known; one < known + MOST; one++)
        if (one->base && address >= one->base && address < one->base + one->inside.size)
            return size <= (size_t)(one->base + one->inside.size - address) ? one : NULL;
    return NULL;
}

static Allocation *unused(void)
{
    for (Allocation *one = known; one < known + MOST; one++)
        if (!one->base)
            return one;
    return NULL;
}

static int map(Allocation *one, int flags)
{
    int file = shm_open(one->inside.name, O_RDWR | flags, 0600);
    if (file < 0)
        return INVALID_HANDLE;
    if (flags && ftruncate(file, (off_t)one->inside.size)) {
        close(file);
        return OUT_OF_MEMORY;
    }
    char *base = mmap(NULL, one->inside.size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (base == MAP_FAILED)
        return OUT_OF_MEMORY;
    one->base = base;
    return SUCCESS;
}

static void settle(void)
{
    while (first) {
        Copy *one = first;
        if (holding(one->target, one->size))
            memcpy(one->target, one->data, one->size);
        first = one->next;
        free(one);
    }
    last = &first;
}

static void forget(Allocation *one)
{
    munmap(one->base, one->inside.size);
    memset(one, 0, sizeof *one);
}

int cudaGetDeviceCount(int *count)
{
    *count = devices();
    return told(*count > 0 ? SUCCESS : NO_DEVICE);
}

int cudaSetDevice(int device)
{
    if (device < 0 || device >= devices())
        return told(INVALID_DEVICE);
    current = device;
    return SUCCESS;
}

int cudaGetLastError(void)
{
    int found = error;
    error = SUCCESS;
    return found;
}

const char *cudaGetErrorString(int code)
{
    return code ? "an error of the stand-in" : "no error";
}

int cudaMalloc(void **address, size_t size)
{
    pthread_mutex_lock(&lock);
    int code = OUT_OF_MEMORY;
    Allocation *one = unused();
    if (one) {
        memcpy(one->inside.magic, MAGIC, sizeof MAGIC);
        snprintf(one->inside.name, sizeof one->inside.name, "/cuda-standin-%d-%d", (int)getpid(), ++made);
        one->inside.device = current;
        one->inside.size = size;
        code = map(one, O_CREAT | O_EXCL);
        *address = one->base;
    }
    pthread_mutex_unlock(&lock);
    return told(code);
}

int cudaFree(void *address)
{
    pthread_mutex_lock(&lock);
    Allocation *one = holding(address, 0);
    int code = one && one->base == address && !one->opened ? SUCCESS : INVALID_VALUE;
    if (!code) {
        shm_unlink(one->inside.name);
        forget(one);
    }
    pthread_mutex_unlock(&lock);
    return told(code);
}

int cudaIpcGetMemHandle(Handle *handle, void *address)
{
    pthread_mutex_lock(&lock);
    Allocation *one = holding(address, 0);
    if (one)
        memcpy(handle->bytes, &one->inside, sizeof one->inside);
    pthread_mutex_unlock(&lock);
    return told(one ? SUCCESS : INVALID_VALUE);
}

int cudaIpcOpenMemHandle(void **address, Handle handle, unsigned flags)
{
    Inside inside;
    memcpy(&inside, handle.bytes, sizeof inside);
    if (flags != 1)
        return told(INVALID_VALUE);
    if (memcmp(inside.magic, MAGIC, sizeof MAGIC) || inside.name[sizeof inside.name - 1] || inside.device != current)
        return told(INVALID_HANDLE);
    pthread_mutex_lock(&lock);
    int code = OUT_OF_MEMORY;
    Allocation *one = known;
    while (one < known + MOST && !(one->opened && !strcmp(one->inside.name, inside.name)))
        one++;
    if (one < known + MOST) {
        code = SUCCESS;
    } else if ((one = unused())) {
        one->inside = inside;
        code = map(one, 0);
    }
    if (!code) {
        one->opened++;
        *address = one->base;
    }
    pthread_mutex_unlock(&lock);
    return told(code);
}

int cudaIpcCloseMemHandle(void *address)
{
    pthread_mutex_lock(&lock);
    Allocation *one = holding(address, 0);
    int code = one && one->base == address && one->opened && one->inside.device == current ? SUCCESS : INVALID_VALUE;
    if (!code && !--one->opened)
        forget(one);
    pthread_mutex_unlock(&lock);
    return told(code);
}

int cudaMemcpy(void *target, const void *source, size_t size, int kind)
{
    pthread_mutex_lock(&lock);
    const char *there = kind == TO_DEVICE ? target : source;
    Allocation *one = holding(there, size);
    int code = (kind == TO_DEVICE || kind == TO_HOST) && one && one->inside.device == current ? SUCCESS : INVALID_VALUE;
    if (!code && kind == TO_HOST) {
        settle();
        memcpy(target, source, size);
    } else if (!code) {
        Copy *copy = malloc(sizeof *copy + size);
        copy->next = NULL;
        copy->target = target;
        copy->size = size;
        memcpy(copy->data, source, size);
        *last = copy;
        last = &copy->next;
    }
    pthread_mutex_unlock(&lock);
    return told(code);
}

int cudaStreamSynchronize(void *stream)
{
    if (stream)
        return told(INVALID_VALUE);
    pthread_mutex_lock(&lock);
    settle();
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuMemGetAddressRange_v2(void **base, size_t *size, void *address)
{
    if (getenv("CUDA_STANDIN_BLIND"))
        return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    Allocation *one = holding(address, 0);
    if (one) {
        *base = one->base;
        *size = one->inside.size;
    }
    pthread_mutex_unlock(&lock);
    return one ? SUCCESS : INVALID_VALUE;
}
