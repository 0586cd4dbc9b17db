#include "server/progress.h"

#include <stdio.h>
#include <unistd.h>

enum { BAR_WIDTH = 30 };

void progress_begin(struct progress *p, const char *label, const char *unit, double total,
                    double now, bool quiet) {
    *p = (struct progress){.label = label,
                           .unit = unit,
                           .total = total > 0 ? total : 1,
                           .started = now,
                           .drawn = now - 1,
                           .terminal = isatty(STDERR_FILENO) == 1,
                           .quiet = quiet};
}

/* Counts above ten thousand read better in thousands or millions. */
static const char *scaled(double *value) {
    if (*value >= 1e7) return *value /= 1e6, "M";
    if (*value >= 1e4) return *value /= 1e3, "k";
    return "";
}

static void draw(const struct progress *p, double done, double now) {
    double share = done / p->total, seconds = now - p->started;
    if (share > 1) share = 1;
    double rate = seconds > 0 ? done / seconds : 0;
    double left = rate > 0 ? (p->total - done) / rate : 0;
    const char *scale = scaled(&rate);
    if (p->terminal) {
        char bar[BAR_WIDTH + 1];
        for (int i = 0; i < BAR_WIDTH; i++) bar[i] = i < share * BAR_WIDTH ? '#' : '.';
        bar[BAR_WIDTH] = 0;
        fprintf(stderr, "\r%s [%s] %3.0f%%  %.1f%s %s/s  %.0f s left \033[K", p->label, bar,
                100 * share, rate, scale, p->unit, left);
    } else {
        fprintf(stderr, "%s: %.0f%%, %.1f%s %s/s, %.0f s left\n", p->label, 100 * share, rate,
                scale, p->unit, left);
    }
}

void progress_update(struct progress *p, double done, double now) {
    if (p->quiet) return;
    if (p->terminal) {
        if (now - p->drawn < 0.1) return;
    } else {
        int tenths = (int)(10 * done / p->total);
        if (tenths <= p->tenths) return;
        p->tenths = tenths;
    }
    p->drawn = now;
    draw(p, done, now);
}

void progress_end(struct progress *p, double done, double now) {
    if (p->quiet) return;
    if (p->terminal) {
        draw(p, done, now);
        fputc('\n', stderr);
    } else if (p->tenths < 10) {
        draw(p, done, now);
    }
}
