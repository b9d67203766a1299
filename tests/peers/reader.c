/* Readers that handle signals as C programs do: with SA_RESTART, so that a read of a disk never fails because of one.
 *
 *     reader read PATH OFFSET LENGTH HOW     one pread
 *     reader fault PATH OFFSET LENGTH HOW    the same bytes through a mapping
 *     reader crowd PATH COUNT STRIDE HOW     COUNT processes, each with a pread of 4 KiB at its own multiple of STRIDE
 *
 * HOW: "plain", no handlers; "count", handlers for CHLD, URG, ALRM and WINCH that count; "catch", handlers for HUP, INT,
 * QUIT and TERM that count. It prints "waiting" before it reads (a crowd: "waiting PID PID…"), and then "read N SUM" (the
 * FNV-1a of the bytes) or "error ERRNO", and how often each of its signals came. A crowd prints nothing more: each of
 * its processes exits with 0 or with the error number. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const int harmless[4] = {SIGCHLD, SIGURG, SIGALRM, SIGWINCH};
static const int stopping[4] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM};
static const int *handled = harmless;
static volatile sig_atomic_t came[4];

static void count(int number) {
    for (int i = 0; i < 4; i++)
        came[i] += handled[i] == number;
}

static void handle(const char *how) {
    if (!strcmp(how, "plain"))
        return;
    handled = strcmp(how, "catch") ? harmless : stopping;
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
    for (int i = 0; i < 4; i++)
        sigaction(handled[i], &action, NULL);
}

static void tell(const char *outcome) {
    printf("%s caught %d %d %d %d\n", outcome, came[0], came[1], came[2], came[3]);
}

static void sum(const unsigned char *bytes, size_t length) {
    char outcome[64];
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    snprintf(outcome, sizeof outcome, "read %zu %016" PRIx64, length, hash);
    tell(outcome);
}

static int crowd(int file, int count, off_t stride, const char *how) {
    pid_t parent = getpid();
    pid_t *members = calloc(count, sizeof *members);
    for (int i = 0; i < count; i++) {
        members[i] = fork();
        if (members[i] == 0) {
            char byte[4096];
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(1);
            handle(how);
            _exit(pread(file, byte, sizeof byte, i * stride) < 0 ? errno : 0);
        }
        if (members[i] < 0)
            return 1;
    }
    printf("waiting");
    for (int i = 0; i < count; i++)
        printf(" %d", members[i]);
    printf("\n");
    while (wait(NULL) > 0)
        ;
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 6)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 1 << 16);
    int file = open(argv[2], O_RDONLY);
    if (file < 0)
        return 1;
    posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
    off_t offset = atoll(argv[3]);
    size_t length = atoll(argv[4]);
    if (!strcmp(argv[1], "crowd"))
        return crowd(file, offset, length, argv[5]);
    handle(argv[5]);
    unsigned char *bytes = malloc(length);
    if (!strcmp(argv[1], "fault")) {
        unsigned char *mapped = mmap(NULL, offset + length, PROT_READ, MAP_PRIVATE, file, 0);
        if (mapped == MAP_FAILED)
            return 1;
        printf("waiting\n");
        memcpy(bytes, mapped + offset, length);
        sum(bytes, length);
        return 0;
    }
    printf("waiting\n");
    ssize_t got = pread(file, bytes, length, offset);
    if (got < 0) {
        char outcome[32];
        snprintf(outcome, sizeof outcome, "error %d", errno);
        tell(outcome);
    } else {
        sum(bytes, got);
    }
    return 0;
}
