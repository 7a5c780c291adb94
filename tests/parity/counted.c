/* Counts how often malloc is asked for memory, by any thread, while counting is on. Put in front of
   glibc's by LD_PRELOAD. */
#include <errno.h>
#include <stddef.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

static volatile int counting;
static int all, large;

static size_t noted(size_t size) {
  if (counting) {
    __sync_fetch_and_add(&all, 1);
    if (size >= 1024) __sync_fetch_and_add(&large, 1);
  }
  return size;
}

void *malloc(size_t size) { return __libc_malloc(noted(size)); }
void *calloc(size_t count, size_t size) {
  noted(count * size);
  return __libc_calloc(count, size);
}
void *realloc(void *at, size_t size) { return __libc_realloc(at, noted(size)); }
void *memalign(size_t alignment, size_t size) { return __libc_memalign(alignment, noted(size)); }
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void **at, size_t alignment, size_t size) {
  *at = memalign(alignment, size);
  return *at == NULL ? ENOMEM : 0;
}

void start_counting(void) { all = large = 0; counting = 1; }
void stop_counting(void) { counting = 0; }
int counted(void) { return all; }
int counted_large(void) { return large; }
