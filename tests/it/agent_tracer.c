/* agent_tracer PID: tries every way into the memory and descriptors of PID, and prints one line for each way that works. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void opens(int pid, const char *name, int flags)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
	int fd = open(path, flags);
	if (fd >= 0)
		printf("open %s\n", path), close(fd);
	else
		printf("refused %s: %s\n", path, strerror(errno));
}

static void did(const char *what, long result)
{
	/* A bad address: it may look, and there is nothing. */
	if (result >= 0 || errno == EFAULT)
		printf("did %s\n", what);
	else
		printf("refused %s: %s\n", what, strerror(errno));
}

int main(int argc, char **argv)
{
	int pid = argc > 1 ? atoi(argv[1]) : 1, status;
	char byte = 0;
	struct iovec here = { &byte, 1 }, there = { (void *)0x400000, 1 };

	opens(pid, "mem", O_RDWR);
	opens(pid, "maps", O_RDONLY);
	opens(pid, "environ", O_RDONLY);
	opens(pid, "fd/0", O_RDONLY);
	opens(pid, "cwd", O_RDONLY | O_DIRECTORY);
	opens(pid, "root", O_RDONLY | O_DIRECTORY);
	opens(pid, "exe", O_RDONLY);
	opens(pid, "oom_score_adj", O_WRONLY);
	opens(pid, "cgroup.procs", O_WRONLY);
	errno = 0;
	did("process_vm_readv", process_vm_readv(pid, &here, 1, &there, 1, 0));
	did("process_vm_writev", process_vm_writev(pid, &here, 1, &there, 1, 0));
	int pidfd = syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		perror("pidfd_open");
	for (int fd = 0; fd < 10; fd++) {
		long stolen = syscall(SYS_pidfd_getfd, pidfd, fd, 0);
		/* EBADF: it may look, and there is nothing. */
		if (stolen >= 0 || errno == EBADF)
			printf("did pidfd_getfd %d\n", fd);
		else
			printf("refused pidfd_getfd: %s\n", strerror(errno));
	}
	long seized = ptrace(PTRACE_SEIZE, pid, 0, 0);
	did("PTRACE_SEIZE", seized);
	if (seized == 0)
		ptrace(PTRACE_INTERRUPT, pid, 0, 0), waitpid(pid, &status, __WALL), ptrace(PTRACE_DETACH, pid, 0, 0);
	long attached = ptrace(PTRACE_ATTACH, pid, 0, 0);
	did("PTRACE_ATTACH", attached);
	if (attached == 0)
		waitpid(pid, &status, __WALL), ptrace(PTRACE_DETACH, pid, 0, 0);
	printf("end\n");
	return 0;
}
