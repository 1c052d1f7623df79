/* Noise on weights for CPUs: drawn, scaled and added in one pass, and drawn again for the gradient. compiled.py compiles it
   twice, with REAL as float and as double. The draws are those of draws.py, to the bit. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
    uint64_t key, step;
    int64_t row, column;      /* where the slice begins in the whole matrix; the column is a multiple of four */
    int64_t rows, columns;    /* of blocks */
    int64_t block, uniform;   /* side of a block; 1: uniform noise, 0: round(N(0, 1) / 2) */
} Place;

static const uint64_t GAMMA = 0x9E3779B97F4A7C15u;

static uint64_t mixed(uint64_t state) {
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9u;
    state = (state ^ state >> 27) * 0x94D049BB133111EBu;
    return state ^ state >> 31;
}

/* R of one row of the slice. `words` has room for a quarter as many words. */
static void noise_of_row(const Place *place, int64_t row, uint64_t *words, REAL *noise) {
    int64_t width = place->columns * place->block;
    uint64_t counter = place->step << 40 | (uint64_t)(place->row + row) << 20 | (uint64_t)(place->column / 4);
    uint64_t state = place->key + (counter + 1) * GAMMA;
    for (int64_t word = 0; word < width / 4; ++word) words[word] = mixed(state + (uint64_t)word * GAMMA);
    const int16_t *draw = (const int16_t *)words;
    if (place->uniform)
        for (int64_t c = 0; c < width; ++c) noise[c] = ((REAL)draw[c] + (REAL)0.5) * (REAL)(1.0 / 65536.0);
    else
        for (int64_t c = 0; c < width; ++c)
            noise[c] = (REAL)((draw[c] >= ONE) + (draw[c] >= TWO) - (draw[c] < -ONE) - (draw[c] < -TWO));
}

/* Returns 0, or 1 if there is no memory. */
int add(const Place *place, const REAL *weight, const REAL *bits, REAL *noised, REAL *size) {
    int64_t n = place->block, width = place->columns * n;
    uint64_t *words = malloc(sizeof(uint64_t) * (size_t)(width / 4) + 2 * sizeof(REAL) * (size_t)width);
    if (!words) return 1;
    REAL *noise = (REAL *)(words + width / 4), *of_column = noise + width;
    for (int64_t p = 0; p < place->rows; ++p) {
        const REAL *rows = weight + p * n * width;
        for (int64_t c = 0; c < width; ++c) of_column[c] = 0;
        for (int64_t r = 0; r < n; ++r)
            for (int64_t c = 0; c < width; ++c) {
                REAL value = FABS(rows[r * width + c]);
                of_column[c] = value > of_column[c] ? value : of_column[c];
            }
        for (int64_t q = 0; q < place->columns; ++q) {
            REAL largest = 0, *columns = of_column + q * n;
            for (int64_t c = 0; c < n; ++c) largest = columns[c] > largest ? columns[c] : largest;
            REAL step = largest * EXP2(1 - bits[p * place->columns + q]);
            size[p * place->columns + q] = step;
            for (int64_t c = 0; c < n; ++c) columns[c] = step;
        }
        for (int64_t r = 0; r < n; ++r) {
            noise_of_row(place, p * n + r, words, noise);
            REAL *out = noised + (p * n + r) * width;
            for (int64_t c = 0; c < width; ++c) out[c] = rows[r * width + c] + noise[c] * of_column[c];
        }
    }
    free(words);
    return 0;
}

/* Returns 0, or 1 if there is no memory. */
int bits_gradient(const Place *place, const REAL *gradient, const REAL *size, REAL *out) {
    int64_t n = place->block, width = place->columns * n;
    uint64_t *words = malloc(sizeof(uint64_t) * (size_t)(width / 4) + 2 * sizeof(REAL) * (size_t)width);
    if (!words) return 1;
    REAL *noise = (REAL *)(words + width / 4), *of_column = noise + width;
    for (int64_t p = 0; p < place->rows; ++p) {
        for (int64_t c = 0; c < width; ++c) of_column[c] = 0;
        for (int64_t r = 0; r < n; ++r) {
            noise_of_row(place, p * n + r, words, noise);
            const REAL *row = gradient + (p * n + r) * width;
            for (int64_t c = 0; c < width; ++c) of_column[c] += row[c] * noise[c];
        }
        for (int64_t q = 0; q < place->columns; ++q) {
            REAL sum = 0;
            for (int64_t c = 0; c < n; ++c) sum += of_column[q * n + c];
            out[p * place->columns + q] = (REAL)-0.69314718055994530942 * size[p * place->columns + q] * sum;
        }
    }
    free(words);
    return 0;
}
