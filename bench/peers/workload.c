/* What every peer saves and restores: a process that holds random live data, prints a line every 10 ms, and on SIGUSR1
 * (or a line from its terminal) a checksum of the data.
 *
 *     workload MIB              ticks on standard output
 *     workload MIB tty PATH     as the only program of a virtual machine: ticks on a terminal
 *     workload MIB in DIR       makes DIR its root, ticks into the file /output there
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t asked = 1;

static void ask(int signal) { (void)signal; asked = 1; }

static void must(int result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
}

/* In mount and process namespaces of its own: nothing of the host stays in sight, so that it can be saved by itself. */
static void enter(const char *root, char *mib) {
    must(mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL), "make mounts private");
    must(mount(root, root, NULL, MS_BIND, NULL), "bind the root");
    must(chdir(root), "enter the root");
    must(mkdir("proc", 0755) < 0 && access("proc", F_OK) < 0 ? -1 : 0, "make /proc");
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(umount2(".", MNT_DETACH), "leave the host's root");
    must(mount("proc", "/proc", "proc", 0, NULL), "mount /proc");
    must(setsid(), "setsid");
    int output = open("/output", O_RDWR | O_CREAT | O_APPEND, 0644);
    must(output, "open /output");
    for (int fd = 0; fd < 3; fd++) dup2(output, fd);
    syscall(SYS_close_range, 3, ~0u, 0);
    execl("/workload", "/workload", mib, (char *)NULL);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc > 3 && !strcmp(argv[2], "in")) enter(argv[3], argv[1]);
    struct pollfd terminal = {.fd = -1, .events = POLLIN};
    int output = 1;
    if (argc > 3 && !strcmp(argv[2], "tty")) {
        mkdir("/dev", 0755);
        mount("dev", "/dev", "devtmpfs", 0, "");
        output = terminal.fd = open(argv[3], O_RDWR | O_NOCTTY);
    }
    signal(SIGUSR1, ask);
    size_t words = (size_t)atol(argc > 1 ? argv[1] : "1") << 17;
    uint64_t *data = malloc(words * 8), x = 88172645463325252ull, seed = 0;
    if (!data) return 1;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) < 0) seed = (uint64_t)time(NULL);
    x ^= seed | 1;
    for (size_t i = 0; i < words; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        data[i] = x;
    }
    for (unsigned long tick = 0;; tick++) {
        if (asked) {
            uint64_t sum = 0;
            asked = 0;
            for (size_t i = 0; i < words; i++) sum = (sum ^ data[i]) * 1099511628211ull;
            dprintf(output, "sum %016llx\n", (unsigned long long)sum);
        }
        dprintf(output, "tick %lu\n", tick);
        if (poll(&terminal, 1, 10) > 0) {
            char line[64];
            asked = read(terminal.fd, line, sizeof line) > 0;
        }
    }
}
