/* The peaks of this machine: multiply-adds in registers, and bytes read from memory, on one thread.

       peaks SECONDS      prints  FMA in GFLOP/s, reading in GB/s

   FMA      x = x * a + b in ACCUMULATORS independent chains of vectors: more than the latency of an FMA times the FMAs
            of a cycle (4 x 2 on today's cores), and few enough for the 16 registers of AVX2. Two operations a lane.
   reading  the sum of an array that no cache holds, in independent sums.

   Of each, the best of many short runs: what disturbs makes a run slower and never faster. Built for the machine that
   it runs on (-march=native), so that vectors are as wide as its registers. */

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
#define BYTES (256L << 20)

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

static double reading(const vec *array) {
  vec sums[8] = {{0}};
  double start = now();
  for (long i = 0; i < BYTES / WIDTH; i += 8) {
    for (int k = 0; k < 8; k++) sums[k] += array[i + k];
  }
  double spent = now() - start;
  float sum = 0;
  for (int k = 0; k < 8; k++) sum += sums[k][k % LANES];
  sink = sum;
  return (double)BYTES / spent * 1e-9;
}

static double best(double a, double b) { return a > b ? a : b; }

int main(int count, char **words) {
  double seconds = count > 1 ? atof(words[1]) : 0.5, fma = 0, read = 0;
  double until = now() + seconds / 2;
  do fma = best(fma, multiply_adds());
  while (now() < until);
  vec *array = aligned_alloc(64, BYTES);
  if (!array) return 1;
  for (long i = 0; i < BYTES / WIDTH; i++) array[i] = (vec){1}; /* pages are there once they are written */
  until = now() + seconds / 2;
  do read = best(read, reading(array));
  while (now() < until);
  printf("%g %g\n", fma, read);
  return 0;
}
