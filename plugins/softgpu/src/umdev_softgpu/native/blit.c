/* softgpu: the blitter. Rows of a rectangle, stretch by stretch, through the port. */
#include "internal.h"

enum {
    STRETCH_COST = 64,         /* in bytes of budget: narrow rows cost more than their bytes */
    COLUMN_COST = 8            /* likewise, of a stretch that was found without looking */
};

/* Where a blit stands; kept in softgpu_blit.state between steps. `x` and widths count bytes. */
typedef struct progress {
    int64_t x;
    int64_t y;
    int64_t source_x;
    int64_t source_y;
    uint64_t row_bytes;
    uint64_t rows;
    uint64_t row;  /* rows that are done */
    uint64_t done; /* bytes of the next one that are done */
    uint32_t rows_backwards;
    uint32_t bytes_backwards;
    uint32_t begun;
    uint32_t reserved;
} progress;

_Static_assert(sizeof(progress) <= sizeof(((softgpu_blit *)0)->state), "the state holds it");

/* ---- preparation ---- */

static bool coordinate_valid(int64_t value)
{
    return value >= -(1ll << 32) && value <= 1ll << 32;
}

static bool blit_valid(const softgpu_blit *blit)
{
    bool brush = blit->flags & SOFTGPU_BRUSH;
    if (!surface_valid(&blit->target) || blit->rop > 255 ||
        (blit->flags & ~(uint32_t)(SOFTGPU_CLIP | SOFTGPU_BRUSH | SOFTGPU_MASKED)))
        return false;
    if (rop_reads_source((uint8_t)blit->rop) &&
        (!surface_valid(&blit->source) || space_port(blit->source.space) != space_port(blit->target.space)))
        return false;
    if (blit->pixel_bytes == 0 || blit->pixel_bytes > 16 ||
        (brush && blit->pixel_bytes != 1 && blit->pixel_bytes != 2 && blit->pixel_bytes != 4))
        return false;
    return coordinate_valid(blit->x) && coordinate_valid(blit->y) && coordinate_valid(blit->source_x) &&
           coordinate_valid(blit->source_y) && blit->width <= UINT32_MAX && blit->height <= UINT32_MAX &&
           coordinate_valid(blit->clip_x) && coordinate_valid(blit->clip_y) && coordinate_valid(blit->clip_x2) &&
           coordinate_valid(blit->clip_y2) && coordinate_valid(blit->brush_x) && coordinate_valid(blit->brush_y);
}

/* Narrows [*first, *first + *count) to [low, high); *skipped is what goes at the front. */
static void clip(int64_t *first, int64_t *count, int64_t *skipped, int64_t low, int64_t high)
{
    int64_t end = *first + *count;
    *skipped = low > *first ? low - *first : 0;
    *first += *skipped;
    end = end < high ? end : high;
    *count = end > *first ? end - *first : 0;
}

static bool same_surface(const softgpu_surface *one, const softgpu_surface *other)
{
    return one->space == other->space && one->address == other->address && one->pitch == other->pitch &&
           one->tiling == other->tiling &&
           (one->tiling != SOFTGPU_BLOCKS ||
            (one->block_rows == other->block_rows && one->block_layers == other->block_layers));
}

/* In which order source bytes are read before they are drawn over. */
static void choose_order(const softgpu_blit *blit, progress *p)
{
    const softgpu_surface *target = &blit->target, *source = &blit->source;
    if (!rop_reads_source((uint8_t)blit->rop) || target->space != source->space)
        return;
    if (target->tiling == SOFTGPU_LINEAR && source->tiling == SOFTGPU_LINEAR) {
        uint64_t ignored;
        uint64_t to = surface_locate(target, p->x, p->y, false, &ignored);
        uint64_t from = surface_locate(source, p->source_x, p->source_y, false, &ignored);
        uint64_t rise = target->pitch < 0 ? (uint64_t)-target->pitch : (uint64_t)target->pitch;
        uint64_t extent = (p->rows - 1) * rise + p->row_bytes;
        if (target->pitch == source->pitch && to - from >= extent && from - to >= extent)
            return; /* apart: forwards is faster */
        p->bytes_backwards = to > from;
        p->rows_backwards = (to > from) == (target->pitch > 0);
    } else if (same_surface(target, source)) {
        p->rows_backwards = p->y > p->source_y;
        p->bytes_backwards = p->y == p->source_y && p->x > p->source_x;
    }
}

/* Rows without a gap are one long row. */
static void join_rows(const softgpu_blit *blit, progress *p)
{
    bool reads_source = rop_reads_source((uint8_t)blit->rop);
    int64_t width = (int64_t)p->row_bytes;
    if (blit->target.tiling != SOFTGPU_LINEAR || blit->target.pitch != width || (blit->flags & SOFTGPU_BRUSH) ||
        (reads_source && (blit->source.tiling != SOFTGPU_LINEAR || blit->source.pitch != width)))
        return;
    p->row_bytes *= p->rows; /* below 2^32 rows of at most 2^32 bytes */
    p->rows = 1;
}

int softgpu_blit_begin(softgpu_blit *blit)
{
    progress p = {.begun = 0};
    memcpy(blit->state, &p, sizeof(p));
    if (!blit_valid(blit))
        return SOFTGPU_INVALID;
    int64_t x = blit->x, y = blit->y, width = (int64_t)blit->width, height = (int64_t)blit->height;
    int64_t left = 0, above = 0;
    if (blit->flags & SOFTGPU_CLIP) {
        clip(&x, &width, &left, blit->clip_x, blit->clip_x2);
        clip(&y, &height, &above, blit->clip_y, blit->clip_y2);
    }
    p.begun = 1;
    if (width && height) {
        int64_t bytes = blit->pixel_bytes;
        p.x = x * bytes;
        p.y = y;
        p.source_x = (blit->source_x + left) * bytes;
        p.source_y = blit->source_y + above;
        p.row_bytes = (uint64_t)(width * bytes);
        p.rows = (uint64_t)height;
        choose_order(blit, &p);
        join_rows(blit, &p);
    }
    memcpy(blit->state, &p, sizeof(p));
    return SOFTGPU_OK;
}

/* ---- drawing ---- */

/* What a step works with. */
typedef struct job {
    softgpu_blit *blit;
    progress p;
    uint8_t rop;
    bool reads_source;
    bool reads_target;
    bool masked;
    bool columns; /* a tiling with columns takes part */
    int64_t brush_row; /* that `brush` holds, or -1 */
    pattern brush;
    pattern mask;
} job;

static void job_open(job *j, softgpu_blit *blit)
{
    j->blit = blit;
    memcpy(&j->p, blit->state, sizeof(j->p));
    j->rop = (uint8_t)blit->rop;
    j->masked = blit->flags & SOFTGPU_MASKED;
    j->reads_source = rop_reads_source(j->rop);
    j->reads_target = j->masked || rop_reads_target(j->rop);
    uint32_t hop;
    j->columns = surface_columns(&blit->target, 0, &hop) ||
                 (j->reads_source && surface_columns(&blit->source, 0, &hop));
    j->brush_row = -1;
    static const uint8_t constant[2][1] = {{0}, {0xFF}};
    if (j->rop == 0x00 || j->rop == 0xFF)
        pattern_set(&j->brush, constant[j->rop & 1], 1, j->p.row_bytes); /* blackness and whiteness */
    else if (!(blit->flags & SOFTGPU_BRUSH))
        pattern_set(&j->brush, blit->color, blit->pixel_bytes, j->p.row_bytes);
    if (j->masked)
        pattern_set(&j->mask, blit->write_mask, blit->pixel_bytes, j->p.row_bytes);
}

static uint32_t phase(int64_t x, uint32_t period)
{
    int64_t rest = x % (int64_t)period;
    return (uint32_t)(rest < 0 ? rest + period : rest);
}

/* The brush as it lies from byte `x` of row `y` on. */
static const uint8_t *brush_at(job *j, int64_t x, int64_t y)
{
    const softgpu_blit *blit = j->blit;
    if ((blit->flags & SOFTGPU_BRUSH) && j->rop != 0x00 && j->rop != 0xFF) {
        uint32_t period = 8 * blit->pixel_bytes;
        int64_t row = (y - blit->brush_y) & 7;
        if (j->brush_row != row) {
            pattern_set(&j->brush, blit->brush + row * period, period, j->p.row_bytes);
            j->brush_row = row;
        }
        x -= blit->brush_x * (int64_t)blit->pixel_bytes;
    }
    return j->brush.bytes + phase(x, j->brush.period);
}

static bool overlap(const uint8_t *one, const uint8_t *other, uint64_t length)
{
    uintptr_t a = (uintptr_t)one, b = (uintptr_t)other;
    return a - b < length || b - a < length;
}

/* One stretch, by pointers. `x` and `y` are the target's. Backwards a stretch is no longer than PIECE. */
static void draw(job *j, uint8_t *target, const uint8_t *source, uint64_t length, int64_t x, int64_t y)
{
    if (j->rop == 0xCC && !j->masked) {
        memmove(target, source, length);
        return;
    }
    if (!j->reads_source && !j->reads_target && j->rop != 0x0F) {
        pattern_fill(&j->brush, brush_at(j, x, y), target, length);
        return;
    }
    uint8_t copy[PIECE];
    while (length) {
        uint32_t part = (uint32_t)(length < PIECE ? length : PIECE);
        const uint8_t *from = j->reads_source ? source : NULL;
        if (from && overlap(target, from, part))
            from = memcpy(copy, from, part);
        const uint8_t *mask = j->masked ? j->mask.bytes + phase(x, j->mask.period) : NULL;
        raster(target, from, brush_at(j, x, y), mask, part, j->rop);
        target += part;
        source = source ? source + part : NULL;
        x += part;
        length -= part;
    }
}

/* ---- steps ---- */

/* The stretch that comes next: addresses of its first bytes, and the most that it may have. */
typedef struct stretch {
    int64_t x;
    int64_t y;
    uint64_t target;
    uint64_t source;
    uint64_t length;
} stretch;

static void next_stretch(const job *j, stretch *ret)
{
    const progress *p = &j->p;
    int64_t row = (int64_t)(p->rows_backwards ? p->rows - 1 - p->row : p->row);
    int64_t at = (int64_t)(p->bytes_backwards ? p->row_bytes - 1 - p->done : p->done);
    uint64_t run;
    ret->y = p->y + row;
    ret->x = p->x + at;
    ret->length = p->row_bytes - p->done;
    ret->target = surface_locate(&j->blit->target, ret->x, ret->y, p->bytes_backwards, &run);
    ret->length = run < ret->length ? run : ret->length;
    ret->source = 0;
    if (j->reads_source) {
        ret->source =
            surface_locate(&j->blit->source, p->source_x + at, p->source_y + row, p->bytes_backwards, &run);
        ret->length = run < ret->length ? run : ret->length;
    }
    if (p->bytes_backwards) {
        ret->x -= (int64_t)ret->length - 1;
        ret->target -= ret->length - 1;
        ret->source -= ret->length - 1;
    }
}

static void advance(job *j, uint64_t length, uint32_t cost, softgpu_budget *budget)
{
    j->p.done += length;
    if (j->p.done == j->p.row_bytes) {
        j->p.done = 0;
        j->p.row++;
    }
    budget->units -= (int64_t)length + cost;
}

/* Backwards, `length` bytes were asked for and `reach` of them lie together: go on with the rest, which comes first. */
static void drop_front(stretch *next, uint64_t reach)
{
    next->x += (int64_t)reach;
    next->target += reach;
    next->source += reach;
    next->length -= reach;
}

/* Where one surface's bytes are, as long as nothing has to be looked up. */
typedef struct side {
    const softgpu_surface *surface;
    uint8_t *at;
    int64_t x;
    uint64_t reach; /* bytes that lie together from `at` on */
} side;

/* `address` and `reach` are what a pointer was found for. */
static side side_at(const softgpu_surface *surface, uint8_t *at, int64_t x, uint64_t address, uint64_t reach)
{
    uint32_t hop;
    side s = {.surface = surface, .at = at, .x = x, .reach = reach};
    bool whole = reach >= PAGE - address % PAGE; /* tiles with columns lie in one page */
    if (surface->tiling != SOFTGPU_LINEAR) {
        uint64_t run;
        surface_locate(surface, x, 0, false, &run);
        s.reach = run < reach ? run : reach;
        if (!whole && surface_columns(surface, x, &hop))
            s.surface = NULL;
    }
    return s;
}

/* False: what comes next must be looked up. */
static bool side_skip(side *s, uint64_t length)
{
    uint32_t hop;
    int64_t column = s->x & ~15ll;
    s->x += (int64_t)length;
    s->reach -= length;
    s->at += length;
    if (s->reach)
        return true;
    if (!surface_columns(s->surface, column, &hop))
        return false;
    s->at += hop - 16; /* from the column's end to the start of the next */
    s->reach = 16;
    return true;
}

/* Goes on in the tiles that the first stretch was in: columns lie at known distances. */
static void draw_columns(job *j, const stretch *first, uint8_t *to, uint64_t to_reach, uint8_t *from,
                         uint64_t from_reach, uint64_t most, softgpu_budget *budget, uint64_t *drawn)
{
    const softgpu_blit *blit = j->blit;
    const int64_t shift = j->p.source_x - j->p.x;
    side target = side_at(&blit->target, to, first->x, first->target, to_reach);
    side source = {.surface = NULL};
    if (j->reads_source)
        source = side_at(&blit->source, from, first->x + shift, first->source, from_reach);
    uint64_t length = first->length;
    while (j->p.done && *drawn < most && target.surface && side_skip(&target, length)) {
        if (j->reads_source && (!source.surface || !side_skip(&source, length)))
            return;
        length = j->p.row_bytes - j->p.done;
        length = length < most - *drawn ? length : most - *drawn;
        length = length < target.reach ? length : target.reach;
        if (j->reads_source && source.reach < length)
            length = source.reach;
        draw(j, target.at, source.at, length, target.x, first->y);
        advance(j, length, COLUMN_COST, budget);
        *drawn += length;
    }
}

static int draw_stretch(job *j, section *s, window *target, window *source, uint64_t most, softgpu_budget *budget,
                        uint64_t *drawn, softgpu_fault *fault)
{
    stretch next;
    next_stretch(j, &next);
    if (!j->p.bytes_backwards)
        next.length = next.length < most ? next.length : most;
    uint8_t *to, *from = NULL;
    uint64_t to_reach, from_reach = 0;
    for (;;) {
        int result = window_find(target, s, next.target, next.length, &to, &to_reach, fault);
        if (UNLIKELY(result))
            return result;
        uint64_t reach = to_reach;
        if (j->reads_source) {
            result = window_find(source, s, next.source, next.length, &from, &from_reach, fault);
            if (UNLIKELY(result))
                return result;
            reach = reach < from_reach ? reach : from_reach;
        }
        if (LIKELY(reach >= next.length))
            break;
        if (!j->p.bytes_backwards) {
            next.length = reach;
            break;
        }
        drop_front(&next, reach);
    }
    draw(j, to, from, next.length, next.x, next.y);
    advance(j, next.length, STRETCH_COST, budget);
    *drawn = next.length;
    if (!j->p.bytes_backwards && j->columns)
        draw_columns(j, &next, to, to_reach, from, from_reach, most, budget, drawn);
    return SOFTGPU_OK;
}

/* As much as one section may take. */
static int draw_section(job *j, softgpu_budget *budget, softgpu_fault *fault)
{
    section s;
    window target, source;
    softgpu_blit *blit = j->blit;
    uint32_t needed = WRITE | (j->reads_target ? READ : 0);
    int result = section_enter(&s, space_port(blit->target.space));
    if (UNLIKELY(result))
        return fault_set(fault, result, 0, needed, 0, 0);
    window_open(&target, blit->target.space, needed);
    window_open(&source, j->reads_source ? blit->source.space : NULL, READ);
    int64_t left = SECTION_BYTES < budget->units ? SECTION_BYTES : budget->units;
    while (!result && left > 0 && j->p.row < j->p.rows) {
        uint64_t drawn = 0;
        result = draw_stretch(j, &s, &target, &source, (uint64_t)left, budget, &drawn, fault);
        left -= (int64_t)drawn + STRETCH_COST;
    }
    section_exit(&s);
    return result;
}

static int fetch(softgpu_space *space, uint64_t address, uint32_t needed, uint8_t *bytes, uint64_t *length,
                 softgpu_run *run, bool wanted, softgpu_fault *fault)
{
    int result = space_walk(space, NULL, address, needed, run, fault);
    if (result)
        return result;
    *length = run->length < *length ? run->length : *length;
    uint64_t moved;
    result = wanted ? port_transfer(space_port(space), run, bytes, *length, false, &moved) : SOFTGPU_OK;
    return result ? fault_set(fault, result, address, needed, 0, run->address) : SOFTGPU_OK;
}

/* One stretch of memory that has no pointers: bring it here, draw, send it back. */
static int draw_by_message(job *j, softgpu_budget *budget, softgpu_fault *fault)
{
    uint8_t to[PIECE], from[PIECE];
    stretch next;
    softgpu_run target, source;
    softgpu_blit *blit = j->blit;
    next_stretch(j, &next);
    if (!j->p.bytes_backwards)
        next.length = next.length < PIECE ? next.length : PIECE;
    for (;;) {
        uint64_t length = next.length;
        int result = fetch(blit->target.space, next.target, WRITE, to, &length, &target, j->reads_target, fault);
        if (!result && j->reads_source)
            result = fetch(blit->source.space, next.source, READ, from, &length, &source, true, fault);
        if (result)
            return result;
        if (length < next.length && j->p.bytes_backwards) {
            drop_front(&next, length);
            continue;
        }
        next.length = length;
        break;
    }
    draw(j, to, j->reads_source ? from : NULL, next.length, next.x, next.y);
    uint64_t moved;
    int result = port_transfer(space_port(blit->target.space), &target, to, next.length, true, &moved);
    if (result)
        return fault_set(fault, result, next.target + moved, WRITE, 0, target.address + moved);
    advance(j, next.length, STRETCH_COST, budget);
    return SOFTGPU_OK;
}

int softgpu_blit_step(softgpu_blit *blit, softgpu_budget *budget, softgpu_fault *fault)
{
    job j;
    job_open(&j, blit);
    if (!j.p.begun)
        return fault_set(fault, SOFTGPU_INVALID, 0, 0, 0, 0);
    int result = SOFTGPU_OK;
    while (!result && j.p.row < j.p.rows) {
        if (!softgpu_budget_left(budget)) {
            result = SOFTGPU_MORE;
            break;
        }
        result = draw_section(&j, budget, fault);
        if (result == BY_MESSAGE)
            result = draw_by_message(&j, budget, fault);
    }
    memcpy(blit->state, &j.p, sizeof(j.p));
    return result;
}
