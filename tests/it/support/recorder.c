/*
 * Stands between the gateway and the system (LD_PRELOAD): records what it writes, in one order, and makes calls fail.
 *
 *   RECORDER_DATA      the data folder, without links in its path; files elsewhere are left alone
 *   RECORDER_TO        where to record; nothing is recorded without
 *   RECORDER_CONTROL   a file of 64 bytes that arms and disarms; see `struct control`
 *   RECORDER_UNSYNCED  if set, no file is ever synchronised, and the caller is told that it was
 *
 * A write to a file is recorded with the bytes that were written, a sync as its beginning and its end, so that what was
 * written in between is not taken for safe. A write to a socket is recorded before it is done: from then on a byte of it
 * may be seen. One lock makes one order of all this.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 1, TRUNCATE, SYNC_BEGINS, SYNC_ENDS, CREATE, UNLINK, RENAME, SOCKET };
enum { NOTHING, FAILS_IO, FAILS_SPACE, SHORT, CUT };
enum { SOCKET_BYTES = 16384 };

/* Written and read by the test, at these places. */
struct control {
  int64_t fault;   /* what goes wrong: FAILS_IO, FAILS_SPACE, SHORT or CUT */
  int64_t at;      /* at which call under the data folder, from 1 */
  int64_t calls;   /* how many there were */
  int64_t lasting; /* at every call from there on, not only at that one */
  int64_t hits;    /* how many failed */
  int64_t clock;   /* microseconds that the wall clock is ahead */
  int64_t unused[2];
};

struct head {
  uint32_t kind, path, bytes, unused;
  uint64_t file, at;
};

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static const char *data;
static size_t data_length;
static int record_to = -1;
static int unsynced;
static struct control *control;
static uint64_t syncs;
/* After a short write the rest finds no space: the file that is to be told so. */
static uint64_t full;

static void *real(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

#define REAL(name) \
  static __typeof__(name) *call; \
  if (!call) call = real(#name)

__attribute__((constructor)) static void begin(void) {
  data = getenv("RECORDER_DATA");
  data_length = data ? strlen(data) : 0;
  unsynced = getenv("RECORDER_UNSYNCED") != NULL;
  const char *to = getenv("RECORDER_TO");
  if (to) {
    int low = (int)syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    /* Out of the way of numbers that the program counts on. */
    record_to = fcntl(low, F_DUPFD_CLOEXEC, 400);
    syscall(SYS_close, low);
    if (record_to < 0) abort();
  }
  const char *armed = getenv("RECORDER_CONTROL");
  if (armed) {
    int fd = (int)syscall(SYS_openat, AT_FDCWD, armed, O_RDWR | O_CLOEXEC, 0);
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || mapped == MAP_FAILED) abort();
    syscall(SYS_close, fd);
    control = mapped;
  }
}

static int is_ours(const char *path) {
  return data_length && strncmp(path, data, data_length) == 0 && (path[data_length] == '/' || !path[data_length]);
}

/* The path of a file or folder under the data folder; nothing for everything else. */
static const char *ours(int fd, char *path, struct stat *file) {
  if (!data_length || fstat(fd, file) || (!S_ISREG(file->st_mode) && !S_ISDIR(file->st_mode))) return NULL;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  if (length < 0) return NULL;
  path[length] = 0;
  return is_ours(path) ? path : NULL;
}

/* With the lock held. */
static void record(uint32_t kind, const char *path, uint64_t file, uint64_t at, const void *bytes, size_t length) {
  if (record_to < 0) return;
  struct head head = {kind, (uint32_t)strlen(path), (uint32_t)length, 0, file, at};
  struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)bytes, length}};
  if (syscall(SYS_writev, record_to, parts, 3) != (long)(sizeof head + head.path + length)) abort();
}

/* Whether this call is to go wrong, and how. With the lock held. */
static int fault(int is_write, uint64_t file) {
  if (is_write && full == file && full) {
    full = 0;
    return FAILS_SPACE;
  }
  if (!control || control->fault == NOTHING) return NOTHING;
  if ((control->fault == SHORT || control->fault == CUT) && !is_write) return NOTHING;
  int64_t call = ++control->calls;
  if (call < control->at || (call > control->at && !control->lasting)) return NOTHING;
  control->hits++;
  return (int)control->fault;
}

static int fails(int how) {
  errno = how == FAILS_IO ? EIO : ENOSPC;
  return -1;
}

static void socket_write(int fd, const struct iovec *parts, int count) {
  struct stat file;
  if (record_to < 0 || fstat(fd, &file) || !S_ISSOCK(file.st_mode)) return;
  static char bytes[SOCKET_BYTES];
  size_t length = 0;
  pthread_mutex_lock(&order);
  for (int i = 0; i < count && length < sizeof bytes; i++) {
    size_t part = parts[i].iov_len < sizeof bytes - length ? parts[i].iov_len : sizeof bytes - length;
    memcpy(bytes + length, parts[i].iov_base, part);
    length += part;
  }
  record(SOCKET, "", file.st_ino, 0, bytes, length);
  pthread_mutex_unlock(&order);
}

/* A write at `at`, or where the file stands. */
static ssize_t file_write(int fd, const char *path, uint64_t file, const void *bytes, size_t length, off_t at) {
  pthread_mutex_lock(&order);
  ssize_t written;
  /* Somebody cuts the WAL: only a write to it counts. */
  int is_cut = control && control->fault == CUT;
  const char *end = strrchr(path, '-');
  int how = is_cut && (!end || strcmp(end, "-wal")) ? NOTHING : fault(1, file);
  if (how == CUT && syscall(SYS_ftruncate, fd, 0)) abort();
  if (how == FAILS_IO || how == FAILS_SPACE) {
    written = fails(how);
  } else {
    if (how == SHORT && length > 1) {
      length /= 2;
      full = file;
    }
    off_t to = at >= 0 ? at : lseek(fd, 0, SEEK_CUR);
    written = at >= 0 ? syscall(SYS_pwrite64, fd, bytes, length, at) : syscall(SYS_write, fd, bytes, length);
    if (written > 0) record(WRITE, path, file, (uint64_t)to, bytes, (size_t)written);
  }
  int kept = errno;
  pthread_mutex_unlock(&order);
  errno = kept;
  return written;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t at) {
  char path[PATH_MAX];
  struct stat file;
  if (ours(fd, path, &file)) return file_write(fd, path, file.st_ino, bytes, length, at);
  return syscall(SYS_pwrite64, fd, bytes, length, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { return pwrite64(fd, bytes, length, at); }

ssize_t write(int fd, const void *bytes, size_t length) {
  REAL(write);
  char path[PATH_MAX];
  struct stat file;
  if (ours(fd, path, &file)) return file_write(fd, path, file.st_ino, bytes, length, -1);
  struct iovec part = {(void *)bytes, length};
  socket_write(fd, &part, 1);
  return call(fd, bytes, length);
}

/* The gateway writes no file with these; a file under the data folder would go by unseen. */
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  char path[PATH_MAX];
  struct stat file;
  if (ours(fd, path, &file)) abort();
  socket_write(fd, parts, count);
  return call(fd, parts, count);
}

ssize_t send(int fd, const void *bytes, size_t length, int flags) {
  REAL(send);
  struct iovec part = {(void *)bytes, length};
  socket_write(fd, &part, 1);
  return call(fd, bytes, length, flags);
}

ssize_t sendto(int fd, const void *bytes, size_t length, int flags, const struct sockaddr *to, socklen_t size) {
  REAL(sendto);
  struct iovec part = {(void *)bytes, length};
  socket_write(fd, &part, 1);
  return call(fd, bytes, length, flags, to, size);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
  REAL(sendmsg);
  socket_write(fd, message->msg_iov, (int)message->msg_iovlen);
  return call(fd, message, flags);
}

ssize_t pread64(int fd, void *bytes, size_t length, off_t at) {
  char path[PATH_MAX];
  struct stat file;
  if (control && control->fault == FAILS_IO && ours(fd, path, &file)) {
    pthread_mutex_lock(&order);
    int how = fault(0, file.st_ino);
    pthread_mutex_unlock(&order);
    if (how) return fails(how);
  }
  return syscall(SYS_pread64, fd, bytes, length, at);
}

ssize_t pread(int fd, void *bytes, size_t length, off_t at) { return pread64(fd, bytes, length, at); }

int ftruncate64(int fd, off_t length) {
  REAL(ftruncate64);
  char path[PATH_MAX];
  struct stat file;
  if (!ours(fd, path, &file)) return call(fd, length);
  pthread_mutex_lock(&order);
  int how = fault(0, file.st_ino);
  int done = how ? fails(how) : call(fd, length);
  int kept = errno;
  if (done == 0) record(TRUNCATE, path, file.st_ino, (uint64_t)length, NULL, 0);
  pthread_mutex_unlock(&order);
  errno = kept;
  return done;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int synchronise(int fd, int number) {
  char path[PATH_MAX];
  struct stat file;
  if (!ours(fd, path, &file)) return (int)syscall(number, fd);
  pthread_mutex_lock(&order);
  int how = fault(0, file.st_ino);
  uint64_t sync = ++syncs;
  if (!how && !unsynced) record(SYNC_BEGINS, path, file.st_ino, sync, NULL, 0);
  pthread_mutex_unlock(&order);
  if (how) return fails(how);
  if (unsynced) return 0;
  int done = (int)syscall(number, fd);
  int kept = errno;
  pthread_mutex_lock(&order);
  if (done == 0) record(SYNC_ENDS, path, file.st_ino, sync, NULL, 0);
  pthread_mutex_unlock(&order);
  errno = kept;
  return done;
}

int fsync(int fd) { return synchronise(fd, SYS_fsync); }
int fdatasync(int fd) { return synchronise(fd, SYS_fdatasync); }

static int open_recorded(int folder, const char *path, int flags, mode_t mode) {
  if (!(flags & (O_CREAT | O_TRUNC))) return (int)syscall(SYS_openat, folder, path, flags, mode);
  pthread_mutex_lock(&order);
  struct stat before, file;
  int was_there = fstatat(folder, path, &before, 0) == 0;
  int fd;
  char name[PATH_MAX];
  int how = is_ours(path) && flags & O_CREAT && !was_there ? fault(0, 0) : NOTHING;
  fd = how ? fails(how) : (int)syscall(SYS_openat, folder, path, flags, mode);
  int kept = errno;
  if (fd >= 0 && ours(fd, name, &file)) {
    if (!was_there) record(CREATE, name, file.st_ino, 0, NULL, 0);
    else if (flags & O_TRUNC) record(TRUNCATE, name, file.st_ino, 0, NULL, 0);
  }
  pthread_mutex_unlock(&order);
  errno = kept;
  return fd;
}

#define MODE(flags) \
  mode_t mode = 0; \
  if (flags & (O_CREAT | __O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }

int open(const char *path, int flags, ...) {
  MODE(flags)
  return open_recorded(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  MODE(flags)
  return open_recorded(AT_FDCWD, path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
  MODE(flags)
  return open_recorded(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
  MODE(flags)
  return open_recorded(folder, path, flags, mode);
}

int unlink(const char *path) {
  REAL(unlink);
  if (!is_ours(path)) return call(path);
  pthread_mutex_lock(&order);
  int how = fault(0, 0);
  int done = how ? fails(how) : call(path);
  int kept = errno;
  if (done == 0) record(UNLINK, path, 0, 0, NULL, 0);
  pthread_mutex_unlock(&order);
  errno = kept;
  return done;
}

int rename(const char *from, const char *to) {
  REAL(rename);
  if (!is_ours(to)) return call(from, to);
  pthread_mutex_lock(&order);
  int how = fault(0, 0);
  int done = how ? fails(how) : call(from, to);
  int kept = errno;
  if (done == 0) record(RENAME, from, 0, 0, to, strlen(to));
  pthread_mutex_unlock(&order);
  errno = kept;
  return done;
}

/* Only the wall clock steps; what is measured goes on. */
int clock_gettime(clockid_t clock, struct timespec *time) {
  REAL(clock_gettime);
  int done = call(clock, time);
  if (done == 0 && clock == CLOCK_REALTIME && control && control->clock) {
    int64_t nanos = (int64_t)time->tv_sec * 1000000000 + time->tv_nsec + control->clock * 1000;
    time->tv_sec = nanos / 1000000000;
    time->tv_nsec = nanos % 1000000000;
  }
  return done;
}
