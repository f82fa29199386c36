/*
 * Tries to change one page of a device by system calls of its own making, without any library: raw ROAD NODE OFFSET.
 * Built as a 64-bit and as a 32-bit static executable (cc -nostdlib -static, with and without -m32). Exits with the
 * errno that the kernel answered.
 */
typedef unsigned long word;
typedef unsigned long long u64;

#ifdef __x86_64__
enum { WRITE = 1, OPEN = 2, LSEEK = 8, MMAP = 9, MPROTECT = 10, IOCTL = 16, PWRITE = 18, WRITEV = 20, SENDFILE = 40,
       EXIT = 60, FALLOCATE = 285, PWRITEV = 296, PWRITEV2 = 328 };

static long call(word number, word a, word b, word c, word d, word e, word f)
{
    long result;
    register word r10 __asm__("r10") = d;
    register word r8 __asm__("r8") = e;
    register word r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

#define POSITION(offset) (word)(offset), 0
#define MAP_OFFSET(offset) (word)(offset)
#else
enum { EXIT = 1, WRITE = 4, OPEN = 5, LSEEK = 19, IOCTL = 54, MPROTECT = 125, WRITEV = 146, PWRITE = 181,
       SENDFILE = 187, MMAP = 192, FALLOCATE = 324, PWRITEV = 334, PWRITEV2 = 379 };

static long call(word number, word a, word b, word c, word d, word e, word f)
{
    long result;
    word last[2] = { number, f };
    /* The sixth argument goes by ebp, which the compiler may need to find `last` by. */
    __asm__ volatile("push %%ebp; mov 4(%%eax), %%ebp; mov (%%eax), %%eax; int $0x80; pop %%ebp"
                     : "=a"(result) : "a"(last), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return result;
}

#define POSITION(offset) (word)(offset), (word)((offset) >> 32)
#define MAP_OFFSET(offset) (word)((offset) >> 12)
#endif

enum { PAGE = 4096, RDWR = 2, SHARED = 1, READ_WRITE = 3 };
enum { BLKDISCARD = 0x1277, BLKSECDISCARD = 0x127d, BLKZEROOUT = 0x127f };
enum { KEEP_SIZE = 1, PUNCH_HOLE = 2, ZERO_RANGE = 16 };

static char garbage[PAGE];

struct part {
    void *base;
    word length;
};

static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static long erase(word fd, word request, u64 offset)
{
    u64 range[2] = { offset, PAGE };
    return call(IOCTL, fd, request, (word)range, 0, 0, 0);
}

static long punch(word fd, word mode, u64 offset)
{
#ifdef __x86_64__
    return call(FALLOCATE, fd, mode | KEEP_SIZE, offset, PAGE, 0, 0);
#else
    return call(FALLOCATE, fd, mode | KEEP_SIZE, POSITION(offset), PAGE, 0);
#endif
}

static long map(word fd, word protection, u64 offset)
{
    long page = call(MMAP, 0, PAGE, protection, SHARED, fd, MAP_OFFSET(offset));
    if (page < 0 && page > -PAGE)
        return page;
    if (protection != READ_WRITE) {
        long result = call(MPROTECT, page, PAGE, READ_WRITE, 0, 0, 0);
        if (result < 0)
            return result;
    }
    for (int i = 0; i < PAGE; i++)
        ((volatile char *)page)[i] = garbage[i];
    return 0;
}

static long try(const char *road, const char *node, u64 offset)
{
    struct part parts[2] = { { garbage, 2048 }, { garbage, 2048 } };
    long fd = call(OPEN, (word)node, RDWR, 0, 0, 0, 0);
    if (fd < 0)
        return fd;
    if (same(road, "pwrite"))
        return call(PWRITE, fd, (word)garbage, PAGE, POSITION(offset), 0);
    if (same(road, "pwritev"))
        return call(PWRITEV, fd, (word)parts, 2, POSITION(offset), 0);
    if (same(road, "pwritev2"))
        return call(PWRITEV2, fd, (word)parts, 2, POSITION(offset), 0);
    if (same(road, "BLKDISCARD"))
        return erase(fd, BLKDISCARD, offset);
    if (same(road, "BLKSECDISCARD"))
        return erase(fd, BLKSECDISCARD, offset);
    if (same(road, "BLKZEROOUT"))
        return erase(fd, BLKZEROOUT, offset);
    if (same(road, "punch"))
        return punch(fd, PUNCH_HOLE, offset);
    if (same(road, "zero-range"))
        return punch(fd, ZERO_RANGE, offset);
    if (same(road, "mmap"))
        return map(fd, READ_WRITE, offset);
    if (same(road, "mprotect"))
        return map(fd, 1, offset);
    /* The position of the file, which lseek of either kind can set on a device of this size. */
    long position = call(LSEEK, fd, (word)offset, 0, 0, 0, 0);
    if (position < 0)
        return position;
    if (same(road, "write"))
        return call(WRITE, fd, (word)garbage, PAGE, 0, 0, 0);
    if (same(road, "writev"))
        return call(WRITEV, fd, (word)parts, 2, 0, 0, 0);
    if (same(road, "sendfile")) {
        long source = call(OPEN, (word) "/proc/self/exe", 0, 0, 0, 0, 0);
        return call(SENDFILE, fd, source, 0, PAGE, 0, 0);
    }
    return -255;
}

static u64 number(const char *text)
{
    u64 value = 0;
    for (; *text; text++)
        value = value * 10 + (u64)(*text - '0');
    return value;
}

__attribute__((used)) static void start(const word *stack)
{
    char **arguments = (char **)(stack + 1);
    long result = -255;
    for (int i = 0; i < PAGE; i++)
        garbage[i] = (char)0xa5;
    if (stack[0] == 4)
        result = try(arguments[1], arguments[2], number(arguments[3]));
    call(EXIT, result < 0 ? -result : 0, 0, 0, 0, 0, 0);
}

#ifdef __x86_64__
__asm__(".globl _start; _start: mov %rsp, %rdi; and $-16, %rsp; call start");
#else
__asm__(".globl _start; _start: mov %esp, %eax; and $-16, %esp; sub $12, %esp; push %eax; call start");
#endif
