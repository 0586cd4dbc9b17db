#define _GNU_SOURCE /* TCP_USER_TIMEOUT, SOCK_CLOEXEC */

#include "server/http_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "kernels/error.h"

enum { BACKLOG = 1024, USER_TIMEOUT_MS = 60000 };

static int open_address(const struct addrinfo *a) {
    int on = 1, off = 0;
    int fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
    if (fd < 0) return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    /* "::" takes IPv4 too, as people who write it expect. */
    if (a->ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0 ||
        fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        int code = -errno;
        close(fd);
        return code;
    }
    return fd;
}

static int port_of(int fd, int fallback) {
    struct sockaddr_storage address;
    socklen_t n = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &n) < 0) return fallback;
    if (address.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)(void *)&address)->sin6_port);
    return ntohs(((struct sockaddr_in *)(void *)&address)->sin_port);
}

int http_socket_listen(int *ret_fd, int *ret_port, const char *host, int port, struct error *err) {
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    int r = getaddrinfo(host, service, &hints, &list);
    if (r) return error_set(err, -EADDRNOTAVAIL, "address '%.128s': %s", host, gai_strerror(r));
    int fd = -EADDRNOTAVAIL;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) fd = open_address(a);
    freeaddrinfo(list);
    if (fd < 0)
        return error_set(err, fd, "cannot listen on %.128s port %d: %s", host, port, strerror(-fd));
    *ret_fd = fd;
    *ret_port = port_of(fd, port);
    return 0;
}

void http_socket_close(int fd) { close(fd); }

/* Whether the path may be bound: nothing is there, or a socket that nobody listens on. */
static int clear_stale(const struct sockaddr_un *address, struct error *err) {
    const char *path = address->sun_path;
    struct stat status;
    if (lstat(path, &status) < 0)
        return errno == ENOENT ? 0 : error_set(err, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISSOCK(status.st_mode)) return error_set(err, -EEXIST, "%s is no socket", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return error_set(err, -errno, "%s: %s", path, strerror(errno));
    int r = connect(fd, (const struct sockaddr *)(const void *)address, sizeof *address);
    int code = r < 0 ? -errno : 0;
    close(fd);
    if (code != -ECONNREFUSED)
        return error_set(err, -EADDRINUSE, "%s: another server listens there", path);
    return unlink(path) < 0 ? error_set(err, -errno, "%s: %s", path, strerror(errno)) : 0;
}

static int bind_unix(int fd, const struct sockaddr_un *address, int mode) {
    /* Not by chmod() afterwards: nobody shall slip in between. */
    mode_t before = umask((mode_t)(0777 & ~mode));
    int r = bind(fd, (const struct sockaddr *)(const void *)address, sizeof *address);
    int code = r < 0 ? -errno : 0;
    umask(before);
    if (code == 0 && listen(fd, BACKLOG) < 0) code = -errno;
    return code;
}

int http_socket_listen_unix(int *ret_fd, struct http_unix *ret, const char *path, int mode,
                            struct error *err) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat status;
    if (strlen(path) >= sizeof address.sun_path)
        return error_set(err, -ENAMETOOLONG, "--unix-socket: paths have at most %zu bytes",
                         sizeof address.sun_path - 1);
    strcpy(address.sun_path, path);
    int r = clear_stale(&address, err);
    if (r < 0) return r;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return error_set(err, -errno, "%s: %s", path, strerror(errno));
    r = bind_unix(fd, &address, mode);
    if (r == 0 && lstat(path, &status) < 0) r = -errno;
    if (r < 0) {
        close(fd);
        return error_set(err, r, "cannot listen on %s: %s", path, strerror(-r));
    }
    *ret = (struct http_unix){.device = status.st_dev, .inode = status.st_ino};
    strcpy(ret->path, path);
    *ret_fd = fd;
    return 0;
}

/* Another server may have put its own there meanwhile. */
void http_socket_remove_unix(const struct http_unix *file) {
    struct stat status;
    if (!file->inode || lstat(file->path, &status) < 0) return;
    if (status.st_dev == file->device && status.st_ino == file->inode) unlink(file->path);
}

void http_socket_tune(int fd) {
    int on = 1, timeout = USER_TIMEOUT_MS;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
}

unsigned long http_socket_raise_limit(unsigned long n) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return 0;
    if (limit.rlim_cur < n) {
        limit.rlim_cur = n < limit.rlim_max ? n : limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        getrlimit(RLIMIT_NOFILE, &limit);
    }
    return (unsigned long)limit.rlim_cur;
}
