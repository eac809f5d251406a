/* The peaks of this machine: multiply-adds in registers, and bytes read, on one thread.

       peaks BYTES        for each line with a number of seconds: prints  FMA in GFLOP/s, reading in GB/s

   FMA      x = x * a + b in ACCUMULATORS independent chains of vectors: more than the latency of an FMA times the FMAs
            of a cycle (4 x 2 on today's cores), and few enough for the 16 registers of AVX2. Two operations a lane.
   reading  the sum of an array of BYTES, over and over, in independent sums: from the cache that holds it, or memory.

   Of each, the median of many short runs: models, too, have what the machine gives them at the time. Built for the
   machine that it runs on (-march=native), so that vectors are as wide as its registers. */

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

#define LANES (WIDTH / 4)
#define ACCUMULATORS 12
#define ITERATIONS 100000L
#define MOST_RUNS 4096
#define BLOCK (8L * WIDTH)

typedef float vec __attribute__((vector_size(WIDTH)));

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static volatile float sink;

static double multiply_adds(void) {
  volatile float factor = 0.999f, term = 1e-3f; /* the compiler may not know them */
  vec a = {0}, b = {0}, x[ACCUMULATORS];
  for (int l = 0; l < LANES; l++) a[l] = factor, b[l] = term;
  for (int k = 0; k < ACCUMULATORS; k++) x[k] = a + (float)k;
  double start = now();
  for (long i = 0; i < ITERATIONS; i++) {
    for (int k = 0; k < ACCUMULATORS; k++) x[k] = x[k] * a + b;
  }
  double spent = now() - start;
  float sum = 0;
  for (int k = 0; k < ACCUMULATORS; k++) sum += x[k][k % LANES];
  sink = sum;
  return 2.0 * LANES * ACCUMULATORS * (double)ITERATIONS / spent * 1e-9;
}

static const vec *array;
static long bytes;

static double reading(void) {
  vec sums[8] = {{0}};
  double start = now();
  for (long i = 0; i < bytes / WIDTH; i += 8) {
    for (int k = 0; k < 8; k++) sums[k] += array[i + k];
  }
  double spent = now() - start;
  float sum = 0;
  for (int k = 0; k < 8; k++) sum += sums[k][k % LANES];
  sink = sum;
  return (double)bytes / spent * 1e-9;
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* The median of the runs of so many seconds, one at least. */
static double median(double (*run)(void), double seconds) {
  static double found[MOST_RUNS];
  int count = 0;
  double until = now() + seconds;
  do found[count++] = run();
  while (now() < until && count < MOST_RUNS);
  qsort(found, count, sizeof *found, compare);
  return found[count / 2];
}

int main(int count, char **words) {
  bytes = ((count > 1 ? atol(words[1]) : 1) + BLOCK - 1) / BLOCK * BLOCK;
  vec *made = aligned_alloc(64, bytes);
  if (!made) return 1;
  for (long i = 0; i < bytes / WIDTH; i++) made[i] = (vec){1}; /* pages are there once they are written */
  array = made;
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    double seconds = atof(line), fma = median(multiply_adds, seconds / 2);
    printf("%g %g\n", fma, median(reading, seconds / 2));
    fflush(stdout);
  }
  return 0;
}
