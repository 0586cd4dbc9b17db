/* amx.h - names the parts that kernels/amx overrides in the table of operations, and sets up tiles.
 *
 * Owns      nothing.
 * Borrows   the table during the call.
 * Thread    any.
 * Fails     never.
 * Cost      a few stores.
 *
 * Call only where the processor has the instructions and the kernel lets this process use tiles; see
 * kernels/cpu/features.h. */
#ifndef KERNELS_AMX_AMX_H
#define KERNELS_AMX_AMX_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

struct bcq_ops;

void amx_bcq_init(struct bcq_ops *bcq);
void amx_whole_init(struct bcq_ops *whole);

/* gcc 12 does not know that loading a tile reads memory. */
#define AMX_BEFORE_LOADS() __asm__ volatile("" ::: "memory")

/* Bytes of a tile register's lines, and how many it has. */
struct amx_shape {
    uint16_t line_bytes;
    uint8_t lines;
};

static inline void amx_configure(const struct amx_shape shapes[8]) {
    struct {
        uint8_t palette, start, unused[14];
        uint16_t line_bytes[16];
        uint8_t lines[16];
    } config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.line_bytes[i] = shapes[i].line_bytes;
        config.lines[i] = shapes[i].lines;
    }
    /* gcc 12 takes the configuration for eight bytes. */
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

#endif
