/* What programs do that a library before the C library must not break. Ends with 0, or tells what broke. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define HOLD(what) \
    do { if (!(what)) { dprintf(2, "line %d: %s (errno %d)\n", __LINE__, #what, errno); exit(1); } } while (0)

/* A malloc of the program's own: it would notice whoever allocates beneath it while it works. */
static char arena[8 << 20];
static size_t used;
static __thread int inside;
static int reentered;

void *malloc(size_t size) {
    if (inside) reentered = 1;
    inside = 1;
    size_t at = __atomic_fetch_add(&used, (size + 31) & ~15UL, __ATOMIC_SEQ_CST);
    if (at + size + 16 > sizeof arena) abort();
    *(size_t *)(arena + at) = size;
    /* One that writes while it allocates. */
    if (write(-1, "", 0) != -1) abort();
    inside = 0;
    return arena + at + 16;
}
void free(void *memory) { (void)memory; }
void *calloc(size_t count, size_t size) { return memset(malloc(count * size), 0, count * size); }
void *realloc(void *old, size_t size) {
    void *new = malloc(size);
    if (old) {
        size_t before = *(size_t *)((char *)old - 16);
        memcpy(new, old, before < size ? before : size);
    }
    return new;
}

/* Before main, and before the library's own initialiser may have run. */
static int early = -1;
__attribute__((constructor(101))) static void initialise(void) {
    early = open("/dev/null", O_RDWR);
    if (early >= 0 && write(early, "early", 5) != 5) early = -2;
}

static const char *node;
static volatile sig_atomic_t handled;

static void handler(int number) {
    (void)number;
    int before = errno;
    char byte;
    int device = open(node, O_RDWR);
    if (device >= 0) {
        if (pread(device, &byte, 1, 1080) == 1) pwrite(device, &byte, 1, 1080);
        close(device);
    }
    handled++;
    errno = before;
}

static void *writer(void *unused) {
    (void)unused;
    char block[4096];
    int device = open(node, O_RDWR);
    HOLD(device >= 0);
    for (int i = 0; i < 2000; i++) {
        HOLD(pread(device, block, sizeof block, 0) == sizeof block);
        HOLD(pwrite(device, block, sizeof block, 0) == sizeof block);
        block[0] ^= 1;
        HOLD(pwrite(device, block, sizeof block, 48 << 20) == sizeof block);
    }
    close(device);
    return NULL;
}

static int wait_for(pid_t child) {
    int status;
    while (waitpid(child, &status, 0) != child) HOLD(errno == EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void *cancelled(void *pipe_end) {
    char byte;
    /* A cancellation point: whoever waits in it can be cancelled. */
    for (;;) write(*(int *)pipe_end, &byte, 1);
    return NULL;
}

int main(int count, char **arguments) {
    HOLD(count == 2);
    node = arguments[1];
    HOLD(early >= 0);

    /* errno is as it was where nothing failed, and as the kernel has it where something did. */
    errno = 77;
    int null = open("/dev/null", O_WRONLY);
    HOLD(null >= 0 && write(null, "x", 1) == 1 && errno == 77);
    HOLD(write(-1, "x", 1) == -1 && errno == EBADF);
    HOLD(open("/nonexistent", O_RDWR) == -1 && errno == ENOENT);
    int device = open(node, O_RDWR);
    HOLD(device >= 0);
    errno = 77;
    char block[4096];
    HOLD(pread(device, block, sizeof block, 0) == sizeof block);
    HOLD(pwrite(device, block, sizeof block, 0) == sizeof block && errno == 77);
    /* Memory that is not there is told, not touched. */
    HOLD(pwrite(device, (void *)8, 4096, 48 << 20) == -1 && errno == EFAULT);
    struct iovec nowhere = {(void *)8, 4096};
    HOLD(pwritev(device, &nowhere, 1, 48 << 20) == -1 && errno == EFAULT);
    HOLD(pwritev(device, (void *)8, 1, 48 << 20) == -1 && errno == EFAULT);

    /* The program closes every descriptor that it does not know, and reuses the numbers. */
    for (int fd = 3; fd < 1024; fd++) close(fd);
    int first = open("/dev/null", O_WRONLY);
    HOLD(first == 3);
    device = open(node, O_RDWR);
    HOLD(device == 4);
    close(first);
    char path[] = "/tmp/fg-abuse-XXXXXX";
    int file = mkstemp(path);
    HOLD(file == 3);
    unlink(path);
    /* The number was /dev/null's. */
    HOLD(write(file, block, sizeof block) == sizeof block && lseek(file, 0, SEEK_CUR) == sizeof block);

    /* Refused here, and nowhere else: not in a child, and not in the program that a child becomes. */
    pid_t child = fork();
    if (child == 0) {
        memset(block, 0xa5, sizeof block);
        HOLD(pwrite(device, block, sizeof block, 0) == -1 && errno == EPERM);
        /* This process is cut off now. */
        HOLD(pwrite(device, block, sizeof block, 48 << 20) == -1 && errno == EPERM);
        child = fork();
        if (child == 0) {
            HOLD(pwrite(device, block, sizeof block, 48 << 20) == sizeof block);
            _exit(0);
        }
        _exit(wait_for(child));
    }
    HOLD(wait_for(child) == 0);
    HOLD(pwrite(device, block, sizeof block, 48 << 20) == sizeof block);
    child = vfork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", "exec echo vfork >/dev/null", NULL);
        _exit(1);
    }
    HOLD(wait_for(child) == 0);
    char *command[] = {"/bin/true", NULL};
    HOLD(posix_spawn(&child, command[0], NULL, NULL, command, NULL) == 0 && wait_for(child) == 0);

    /* Threads, with a handler in between that does the same. */
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    HOLD(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval often = {{0, 2000}, {0, 2000}}, never = {{0, 0}, {0, 0}};
    HOLD(setitimer(ITIMER_REAL, &often, NULL) == 0);
    pthread_t threads[8];
    for (int i = 0; i < 8; i++) HOLD(pthread_create(&threads[i], NULL, writer, NULL) == 0);
    for (int i = 0; i < 40; i++) {
        child = fork();
        if (child == 0) _exit(pwrite(device, block, sizeof block, 49 << 20) == sizeof block ? 0 : 1);
        HOLD(wait_for(child) == 0);
    }
    for (int i = 0; i < 8; i++) HOLD(pthread_join(threads[i], NULL) == 0);
    HOLD(setitimer(ITIMER_REAL, &never, NULL) == 0);
    HOLD(handled > 0);

    int ends[2];
    void *result;
    HOLD(pipe(ends) == 0 && pthread_create(&threads[0], NULL, cancelled, &ends[1]) == 0);
    usleep(20000);
    HOLD(pthread_cancel(threads[0]) == 0 && pthread_join(threads[0], &result) == 0 && result == PTHREAD_CANCELED);

    /* Mappings of everything else come and go. */
    char *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, device, 0);
    HOLD(page != MAP_FAILED);
    char *other = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    HOLD(other != MAP_FAILED && mprotect(other, 8192, PROT_READ | PROT_WRITE) == 0);
    other[0] = 1;
    char *private = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, device, 0);
    HOLD(private != MAP_FAILED && mprotect(private, 4096, PROT_READ | PROT_WRITE) == 0);
    private[0] ^= 1;
    child = fork();
    if (child == 0) {
        HOLD(mprotect(page, 4096, PROT_READ | PROT_WRITE) == -1 && errno == EPERM);
        _exit(0);
    }
    HOLD(wait_for(child) == 0);
    HOLD(!reentered);
    return 0;
}
