// What the library and the standard library inside of it take from glibc, at the versions of these symbols that systems
// from 2018 on have (manylinux_2_28). A linker binds names to the newest versions of the machine that it runs on.
// CMakeLists.txt has the linker call the functions below instead (--wrap), and drop what nobody calls of the standard
// library, which asks for newer symbols still.
#include <pthread.h>

#include <cmath>

#if defined(__x86_64__)
#define CODA_OLDEST "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define CODA_OLDEST "GLIBC_2.17"
#endif

#define CODA_OLD(name) __asm__(".symver old_" #name ", " #name "@" CODA_OLDEST)

extern "C" {

CODA_OLD(exp);
CODA_OLD(log);
CODA_OLD(pow);
CODA_OLD(pthread_once);
CODA_OLD(__pthread_key_create);

double old_exp(double x);
double old_log(double x);
double old_pow(double x, double y);
int old_pthread_once(pthread_once_t* control, void (*call)());
int old___pthread_key_create(pthread_key_t* key, void (*destroy)(void*));

double __wrap_exp(double x) { return old_exp(x); }
double __wrap_log(double x) { return old_log(x); }
double __wrap_pow(double x, double y) { return old_pow(x, y); }
int __wrap_pthread_once(pthread_once_t* control, void (*call)()) { return old_pthread_once(control, call); }
int __wrap___pthread_key_create(pthread_key_t* key, void (*destroy)(void*)) {
  return old___pthread_key_create(key, destroy);
}

// Of glibc 2.32 on: whether the process has one thread. Where that is not known, counters are atomic.
char __wrap___libc_single_threaded = 0;
}
