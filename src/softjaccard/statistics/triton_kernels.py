"""The kernels of the triton backend; :mod:`softjaccard.statistics.fused` imports this on first use.

A program holds a tile of classes and pixels in registers, so that logits are read from memory once. Triton's tiles have
powers of two as sizes: to waste little of them, the classes are cut into two parts, 19 into 16 + 4 rows and 150 into
128 + 32. ``A`` and ``B`` are their rows; ``B`` is 0 where one part does.

Sums stay in registers while a program walks over its pixels, then go to a row of its own in a buffer: no atomics, so
that the same input gives the same sums. Logarithms are of base 2 until the host scales them.
"""

import triton
import triton.language as tl

# What the label is. Smoothed alike everywhere, a label is an INDEX with other values than 1 and 0.
INDEX = tl.constexpr(0)
INDEX_WHERE = tl.constexpr(1)
DENSE = tl.constexpr(2)
# The logits of a teacher: for each pixel, or at a low resolution of their own, or at that of the student.
TEACHER = tl.constexpr(3)
TEACHER_LOW = tl.constexpr(4)
TEACHER_SHARED = tl.constexpr(5)

# What the mask holds; without one every pixel counts.
NO_MASK = tl.constexpr(0)
BOOLEAN = tl.constexpr(1)
WEIGHTS = tl.constexpr(2)

# The bits of WANT, in the order of FIELDS.
PREDICTION = tl.constexpr(1 << 0)
LABEL = tl.constexpr(1 << 1)
OVERLAP = tl.constexpr(1 << 2)
CROSS_ENTROPY = tl.constexpr(1 << 3)
PRODUCT = tl.constexpr(1 << 4)
PREDICTION_SQUARE = tl.constexpr(1 << 5)
LABEL_SQUARE = tl.constexpr(1 << 6)
LABEL_ENTROPY = tl.constexpr(1 << 7)
PREDICTION_PEAK = tl.constexpr(1 << 8)
LABEL_PEAK = tl.constexpr(1 << 9)

# Arguments whose value is no reason to compile a kernel anew, because no vector depends on it.
UNSPECIALISED = ("label_height", "label_width", "label_row", "classes", "ignore_index", "blocks", "fields")
UNSPECIALISED_CELLS = (
    *("height", "width", "low_height", "low_width", "logits_image", "logits_row", "label_image", "gradient_image"),
    *("gradient_row", "cell_rows", *UNSPECIALISED),
)


# --- Pixels ----------------------------------------------------------------------------------------------------------


@triton.jit
def _load(base, class_stride, rows, classes, offsets, inside, other):
    """A tile (rows, pixels) in float32."""
    pointers = base + rows.to(tl.int64)[:, None] * class_stride + offsets[None, :]
    return tl.load(pointers, mask=(rows < classes)[:, None] & inside[None, :], other=other).to(tl.float32)


@triton.jit
def _sum(ta, tb, B: tl.constexpr):
    """Sums over the classes of both parts, whose rows are added before threads have to exchange anything."""
    if B > 0:
        ta = tl.sum(tl.reshape(ta, (ta.shape[0] // B, B, ta.shape[1])), 0) + tb
    return tl.sum(ta, 0)


@triton.jit
def _max(ta, tb, B: tl.constexpr):
    if B > 0:
        ta = tl.maximum(tl.max(tl.reshape(ta, (ta.shape[0] // B, B, ta.shape[1])), 0), tb)
    return tl.max(ta, 0)


@triton.jit
def _softmax(xa, xb, weight, scale, B: tl.constexpr):
    """Probabilities of both parts, the base-2 logarithms of their ratios to the largest, and log2 of the ratios' sum.

    Where a pixel doesn't count its logits may be anything: they are selected away.
    """
    counted = (weight != 0)[None, :]
    xa, xb = tl.where(counted, xa, 0.0), tl.where(counted, xb, 0.0)
    top = _max(xa, xb, B)[None, :]
    da, db = (xa - top) * scale, (xb - top) * scale
    pa, pb = tl.exp2(da), tl.exp2(db)
    total = _sum(pa, pb, B)
    inverse = (1 / total)[None, :]
    return pa * inverse, pb * inverse, da, db, tl.log2(total)


@triton.jit
def _weigh(label, mask, pixel, inside, classes, ignore_index, KIND: tl.constexpr, MASK: tl.constexpr):
    """The weights of pixels, 0 where they don't count and NaN where they are invalid, and their class ids or -1."""
    weight = tl.where(inside, 1.0, 0.0)
    if MASK == BOOLEAN:
        weight = tl.where(tl.load(mask + pixel, mask=inside, other=0) != 0, 1.0, 0.0)
    if MASK == WEIGHTS:
        value = tl.load(mask + pixel, mask=inside, other=0.0).to(tl.float32)
        weight = tl.where((value >= 0) & (value < float("inf")), value, float("nan"))
    ids = tl.full(weight.shape, -1, tl.int32)
    if KIND <= INDEX_WHERE:
        stored = tl.load(label + pixel, mask=inside, other=0).to(tl.int64)
        weight = tl.where(stored == ignore_index, weight * 0, weight)
        valid = (stored >= 0) & (stored < classes)
        weight = tl.where(valid | (weight == 0), weight, float("nan"))
        ids = tl.where(valid & (weight != 0), stored, -1).to(tl.int32)
    return weight, ids


@triton.jit
def _one_hot(ids, where, pixel, inside, rows, hit, miss, KIND: tl.constexpr):
    """Labels of class ids: ``hit`` for a pixel's class and ``miss`` for the others, 1 and 0 where not smoothed."""
    hits = tl.full(ids.shape, 1.0, tl.float32) * hit
    misses = tl.full(ids.shape, 1.0, tl.float32) * miss
    if KIND == INDEX_WHERE:
        smooth = tl.load(where + pixel, mask=inside, other=0) != 0
        hits = tl.where(smooth, hits, 1.0)
        misses = tl.where(smooth, misses, 0.0)
    return tl.where(rows[:, None] == ids[None, :], hits[None, :], misses[None, :])


@triton.jit
def _check(ya, yb, weight, slack, B: tl.constexpr):
    """The weights, NaN where a dense label is no distribution."""
    low, high, total = -_max(-ya, -yb, B), _max(ya, yb, B), _sum(ya, yb, B)
    # A NaN shows in the total, whether or not it shows in the others.
    valid = (low >= -slack) & (high <= 1 + slack) & (tl.abs(total - 1) <= slack)
    return tl.where(valid | (weight == 0), weight, float("nan"))


# --- Bilinear interpolation ------------------------------------------------------------------------------------------
# Along an axis, pixel q of ``full`` lies at (q * step + shift) / den in ``low`` pixels. A cell is the interval from one
# low pixel to the next; the first, -1, ends at low pixel 0. In integers: rounding puts no pixel in a wrong cell.


@triton.jit
def _axis(low, full, ALIGN: tl.constexpr):
    if ALIGN:
        return low - 1, 0, tl.maximum(full - 1, 1)
    else:
        return 2 * low, low - full, 2 * full


@triton.jit
def _cell(q, low, full, ALIGN: tl.constexpr):
    """The cell of pixel q."""
    step, shift, den = _axis(low, full, ALIGN)
    return (q * step + shift + den) // den - 1  # a division of numbers from 0, because // truncates


@triton.jit
def _first(cell, low, full, ALIGN: tl.constexpr):
    """The first pixel of a cell; that of the next cell is one after its last."""
    step, shift, den = _axis(low, full, ALIGN)
    return tl.minimum((tl.maximum(cell * den - shift, 0) + step - 1) // step, full)


@triton.jit
def _share(q, cell, low, full, ALIGN: tl.constexpr):
    """How much of pixel q belongs to the end of its cell; the outermost cells have only one end."""
    step, shift, den = _axis(low, full, ALIGN)
    share = (q * step + shift - cell * den) / den
    return tl.where(cell < 0, 1.0, tl.where(cell >= low - 1, 0.0, share))


@triton.jit
def _ends(cell, low, stride):
    """Where the low pixels at both ends of a cell are stored; the outermost cells have the same at both."""
    start = tl.minimum(tl.maximum(cell, 0), low - 1).to(tl.int64)
    end = tl.minimum(cell + 1, low - 1).to(tl.int64)
    return start * stride, end * stride


@triton.jit
def _sides(base, class_stride, column_stride, rows, classes, ends_y, cell_x, low_width, down, inside):
    """Tiles at the starts and at the ends of cells along x, ``down`` between the low rows of ``ends_y``.

    An end that is missing is 0, and has no share in any pixel. (Were it replaced by the other one, columns would not
    lie one behind the other, from which the compiler knows how best to read.)
    """
    before = cell_x.to(tl.int64) * column_stride
    behind = before + column_stride
    starts, ends = inside & (cell_x >= 0) & (cell_x < low_width), inside & (cell_x + 1 < low_width)
    start = _load(base, class_stride, rows, classes, ends_y[0] + before, starts, 0.0)
    start += (_load(base, class_stride, rows, classes, ends_y[1] + before, starts, 0.0) - start) * down
    end = _load(base, class_stride, rows, classes, ends_y[0] + behind, ends, 0.0)
    end += (_load(base, class_stride, rows, classes, ends_y[1] + behind, ends, 0.0) - end) * down
    return start, end


@triton.jit
def _between(start, end, along, rows, classes):
    value = start + (end - start) * along[None, :]
    return tl.where((rows < classes)[:, None], value, -float("inf"))


# --- Labels ----------------------------------------------------------------------------------------------------------


@triton.jit
def _own(source, full, rows, classes, pixel, y, x, inside, KIND: tl.constexpr, ALIGN: tl.constexpr):
    """A tile of what the label stores for each class: probabilities, or a teacher's logits."""
    label, where, class_stride, row_stride, column_stride, height, width, scale, hit, miss, slack = source
    if KIND == TEACHER_LOW:
        cell_y, cell_x = _cell(y, height, full[0], ALIGN), _cell(x, width, full[1], ALIGN)
        ends_y = _ends(cell_y, height, row_stride)
        down = (_share(y, cell_y, height, full[0], ALIGN) + tl.zeros(inside.shape, tl.float32))[None, :]
        start, end = _sides(label, class_stride, column_stride, rows, classes, ends_y, cell_x, width, down, inside)
        return _between(start, end, _share(x, cell_x, width, full[1], ALIGN), rows, classes)
    else:
        other = 0.0 if KIND == DENSE else -float("inf")
        return _load(label, class_stride, rows, classes, pixel.to(tl.int64) * column_stride, inside, other)


@triton.jit
def _resolve(
    source, full, ra, rb, classes, pixel, y, x, inside, weight, ids, ta, tb,
    KIND: tl.constexpr, ALIGN: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The distributions of both parts, and the weights, NaN where they are none. ``ta``, ``tb``: shared logits."""
    label, where, class_stride, row_stride, column_stride, height, width, scale, hit, miss, slack = source
    if KIND <= INDEX_WHERE:
        ya = _one_hot(ids, where, pixel, inside, ra, hit, miss, KIND)
        yb = ya
        if B > 0:
            yb = _one_hot(ids, where, pixel, inside, rb, hit, miss, KIND)
        return ya, yb, weight
    else:
        if KIND != TEACHER_SHARED:
            ta = _own(source, full, ra, classes, pixel, y, x, inside, KIND, ALIGN)
            tb = ta
            if B > 0:
                tb = _own(source, full, rb, classes, pixel, y, x, inside, KIND, ALIGN)
        if KIND == DENSE:
            counted = (weight != 0)[None, :]
            ya, yb = tl.where(counted, ta, 0.0), tl.where(counted, tb, 0.0)
            return ya, yb, _check(ya, yb, weight, slack, B)
        else:
            ya, yb, da, db, log_total = _softmax(ta, tb, weight, scale, B)
            return ya, yb, weight


# --- Sums ------------------------------------------------------------------------------------------------------------


@triton.jit
def _zeros(ROWS: tl.constexpr, LANES: tl.constexpr):
    zero = tl.zeros((ROWS, LANES), tl.float32)
    return zero, zero, zero, zero, zero, zero, zero, zero, zero, zero


@triton.jit
def _fold(terms, LANES: tl.constexpr):
    """Sums of neighbouring pixels, which one thread holds: no exchange between threads until the end."""
    if terms.shape[1] == LANES:
        return terms
    else:
        return tl.sum(tl.reshape(terms, (terms.shape[0], LANES, terms.shape[1] // LANES)), 2)


@triton.jit
def _fold_peak(values, LANES: tl.constexpr):
    if values.shape[1] == LANES:
        return values
    else:
        return tl.max(tl.reshape(values, (values.shape[0], LANES, values.shape[1] // LANES)), 2)


@triton.jit
def _add(sums, p, d, y, log_total, weight, LANES: tl.constexpr, WANT: tl.constexpr):
    """The sums with a tile's terms added."""
    prediction, label, overlap, cross_entropy, product, square, label_square, entropy, peak, label_peak = sums
    w = weight[None, :]
    y += 0 * p  # the same values; but the compiler now lays y out like p, even where it comes from class ids
    yw = y * w
    if PREDICTION & WANT:
        prediction += _fold(p * w, LANES)
    if LABEL & WANT:
        label += _fold(yw, LANES)
    if OVERLAP & WANT:
        overlap += _fold(tl.minimum(p, y) * w, LANES)
    if CROSS_ENTROPY & WANT:  # where a class has no label, its logit may be -inf
        cross_entropy += _fold(tl.where(y == 0, 0.0, log_total[None, :] - d) * yw, LANES)
    if PRODUCT & WANT:
        product += _fold(p * yw, LANES)
    if PREDICTION_SQUARE & WANT:
        square += _fold(p * p * w, LANES)
    if LABEL_SQUARE & WANT:
        label_square += _fold(y * yw, LANES)
    if LABEL_ENTROPY & WANT:
        entropy -= _fold(tl.log2(tl.where(y > 0, y, 1.0)) * yw, LANES)
    if PREDICTION_PEAK & WANT:
        peak = tl.maximum(peak, _fold_peak(tl.where(w > 0, p, 0.0), LANES))
    if LABEL_PEAK & WANT:
        label_peak = tl.maximum(label_peak, _fold_peak(tl.where(w > 0, y, 0.0), LANES))
    return prediction, label, overlap, cross_entropy, product, square, label_square, entropy, peak, label_peak


@triton.jit
def _store(partial, sums, rows, classes, WANT: tl.constexpr):
    """Write the sums that are wanted, ``classes`` numbers each."""
    prediction, label, overlap, cross_entropy, product, square, label_square, entropy, peak, label_peak = sums
    out, real = partial + rows, rows < classes
    if PREDICTION & WANT:
        tl.store(out, tl.sum(prediction, 1), mask=real)
        out += classes
    if LABEL & WANT:
        tl.store(out, tl.sum(label, 1), mask=real)
        out += classes
    if OVERLAP & WANT:
        tl.store(out, tl.sum(overlap, 1), mask=real)
        out += classes
    if CROSS_ENTROPY & WANT:
        tl.store(out, tl.sum(cross_entropy, 1), mask=real)
        out += classes
    if PRODUCT & WANT:
        tl.store(out, tl.sum(product, 1), mask=real)
        out += classes
    if PREDICTION_SQUARE & WANT:
        tl.store(out, tl.sum(square, 1), mask=real)
        out += classes
    if LABEL_SQUARE & WANT:
        tl.store(out, tl.sum(label_square, 1), mask=real)
        out += classes
    if LABEL_ENTROPY & WANT:
        tl.store(out, tl.sum(entropy, 1), mask=real)
        out += classes
    if PREDICTION_PEAK & WANT:
        tl.store(out, tl.max(peak, 1), mask=real)
        out += classes
    if LABEL_PEAK & WANT:
        tl.store(out, tl.max(label_peak, 1), mask=real)


# --- Gradients -------------------------------------------------------------------------------------------------------


@triton.jit
def _upstream(upstream, field_stride, rows, classes, WANT: tl.constexpr):
    """The derivatives by the sums of these classes; 0 for those without one."""
    real = rows < classes
    zero = tl.zeros(rows.shape, tl.float32)
    prediction, overlap, cross_entropy, product, square = zero, zero, zero, zero, zero
    if PREDICTION & WANT:
        prediction = tl.load(upstream + rows, mask=real, other=0.0)
    if OVERLAP & WANT:
        overlap = tl.load(upstream + field_stride + rows, mask=real, other=0.0)
    if CROSS_ENTROPY & WANT:
        cross_entropy = tl.load(upstream + 2 * field_stride + rows, mask=real, other=0.0)
    if PRODUCT & WANT:
        product = tl.load(upstream + 3 * field_stride + rows, mask=real, other=0.0)
    if PREDICTION_SQUARE & WANT:
        square = tl.load(upstream + 4 * field_stride + rows, mask=real, other=0.0)
    return prediction, overlap, cross_entropy, product, square


@triton.jit
def _slope(p, y, by, WANT: tl.constexpr, ERROR_SCALED: tl.constexpr):
    """The derivative by p."""
    prediction, overlap, cross_entropy, product, square = by
    slope = tl.zeros(p.shape, tl.float32) + prediction[:, None]
    if OVERLAP & WANT:
        slope += overlap[:, None] * tl.where(p < y, 1.0, tl.where(p == y, 0.5, 0.0))
    if PRODUCT & WANT:
        slope += product[:, None] * y
    if PREDICTION_SQUARE & WANT:
        slope += 2 * square[:, None] * p
    if ERROR_SCALED:
        slope *= tl.abs(p - y)
    return slope


@triton.jit
def _pull_back(
    pa, pb, ya, yb, weight, by_a, by_b, WANT: tl.constexpr, ERROR_SCALED: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """The derivatives by the logits of both parts."""
    sa, sb = _slope(pa, ya, by_a, WANT, ERROR_SCALED), _slope(pb, yb, by_b, WANT, ERROR_SCALED)
    ea, eb = by_a[2][:, None] * ya, by_b[2][:, None] * yb
    # Through the softmax: p (slope - sum(p slope)); that of the cross-entropy is p sum(e) - e.
    common = _sum(ea - pa * sa, eb - pb * sb, B)[None, :]
    w = weight[None, :]
    return (pa * (sa + common) - ea) * w, (pb * (sb + common) - eb) * w


@triton.jit
def _write(base, class_stride, rows, classes, offsets, inside, values):
    pointers = base + rows.to(tl.int64)[:, None] * class_stride + offsets[None, :]
    tl.store(pointers, values, mask=(rows < classes)[:, None] & inside[None, :])


# --- Kernels: logits at the label's resolution -----------------------------------------------------------------------


@triton.jit
def _block(
    logits, class_stride, pixel_stride, mask, source, full, block, ra, rb, classes, scale, ignore_index,
    KIND: tl.constexpr, MASK: tl.constexpr, ALIGN: tl.constexpr, B: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where a block's pixels lie, their weights and labels, and what :func:`_softmax` says of their logits."""
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < full[0] * full[1]
    offsets = pixel.to(tl.int64) * pixel_stride
    weight, ids = _weigh(source[0], mask, pixel, inside, classes, ignore_index, KIND, MASK)
    xa = _load(logits, class_stride, ra, classes, offsets, inside, -float("inf"))
    xb = xa
    if B > 0:
        xb = _load(logits, class_stride, rb, classes, offsets, inside, -float("inf"))
    y, x = pixel // full[1], pixel % full[1]
    ya, yb, weight = _resolve(
        source, full, ra, rb, classes, pixel, y, x, inside, weight, ids, xa, xb, KIND, ALIGN, B
    )  # fmt: skip
    return pixel, inside, weight, ya, yb, _softmax(xa, xb, weight, scale, B)


@triton.jit(do_not_specialize=UNSPECIALISED)
def sum_blocks(
    logits, logits_image, logits_class, logits_pixel, label, label_image, label_class, label_row, label_column,
    label_height, label_width, where, mask, height, width, classes, scale, label_scale, hit, miss, slack, ignore_index,
    partial, counts, blocks, fields,
    KIND: tl.constexpr, MASK: tl.constexpr, ALIGN: tl.constexpr, WANT: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The sums over every so many-th block of an image; grid (programs, images)."""
    image = tl.program_id(1).to(tl.int64)
    pixels = image * height * width
    source = (label + image * label_image, where + pixels, label_class, label_row, label_column, label_height,
              label_width, label_scale, hit, miss, slack)  # fmt: skip
    ra, rb = tl.arange(0, A), A + tl.arange(0, B if B > 0 else 1)
    sums_a, sums_b = _zeros(A, LANES), _zeros(B if B > 0 else 1, LANES)
    count = tl.zeros((BLOCK,), tl.float32)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        pixel, inside, weight, ya, yb, found = _block(
            logits + image * logits_image, logits_class, logits_pixel, mask + pixels, source, (height, width), block,
            ra, rb, classes, scale, ignore_index, KIND, MASK, ALIGN, B, BLOCK,
        )  # fmt: skip
        pa, pb, da, db, log_total = found
        count += weight
        sums_a = _add(sums_a, pa, da, ya, log_total, weight, LANES, WANT)
        if B > 0:
            sums_b = _add(sums_b, pb, db, yb, log_total, weight, LANES, WANT)
    program = image * tl.num_programs(0) + tl.program_id(0)
    tl.store(counts + program, tl.sum(count, 0))
    _store(partial + program * fields * classes, sums_a, ra, classes, WANT)
    if B > 0:
        _store(partial + program * fields * classes, sums_b, rb, classes, WANT)


@triton.jit(do_not_specialize=UNSPECIALISED)
def gradient_blocks(
    logits, logits_image, logits_class, logits_pixel, label, label_image, label_class, label_row, label_column,
    label_height, label_width, where, mask, height, width, classes, scale, label_scale, hit, miss, slack, ignore_index,
    upstream, gradient, gradient_image, gradient_class, gradient_pixel, blocks,
    KIND: tl.constexpr, MASK: tl.constexpr, ALIGN: tl.constexpr, WANT: tl.constexpr, ERROR_SCALED: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of the logits in every so many-th block of an image; grid (programs, images)."""
    image = tl.program_id(1).to(tl.int64)
    pixels = image * height * width
    source = (label + image * label_image, where + pixels, label_class, label_row, label_column, label_height,
              label_width, label_scale, hit, miss, slack)  # fmt: skip
    ra, rb = tl.arange(0, A), A + tl.arange(0, B if B > 0 else 1)
    fields = tl.num_programs(1) * classes
    by_a = _upstream(upstream + image * classes, fields, ra, classes, WANT)
    by_b = _upstream(upstream + image * classes, fields, rb, classes, WANT)
    gradient += image * gradient_image
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        pixel, inside, weight, ya, yb, found = _block(
            logits + image * logits_image, logits_class, logits_pixel, mask + pixels, source, (height, width), block,
            ra, rb, classes, scale, ignore_index, KIND, MASK, ALIGN, B, BLOCK,
        )  # fmt: skip
        pa, pb, da, db, log_total = found
        ga, gb = _pull_back(pa, pb, ya, yb, weight, by_a, by_b, WANT, ERROR_SCALED, B)
        places = pixel.to(tl.int64) * gradient_pixel
        _write(gradient, gradient_class, ra, classes, places, inside, ga)
        if B > 0:
            _write(gradient, gradient_class, rb, classes, places, inside, gb)


# --- Kernels: interpolated logits ------------------------------------------------------------------------------------
# All pixels of a cell, between four low pixels, take their logits from those four. A program has some cells of a row,
# and steps through the pixels of all of them at once: along x inside, along y outside.


@triton.jit
def _row(base, strides, low, cell_y, cell_x, down, ra, rb, classes, B: tl.constexpr):
    """The sides of cells, of both parts."""
    ends_y, inside = _ends(cell_y, low[0], strides[1]), cell_x < low[1]
    start_a, end_a = _sides(base, strides[0], strides[2], ra, classes, ends_y, cell_x, low[1], down, inside)
    start_b, end_b = start_a, end_a
    if B > 0:
        start_b, end_b = _sides(base, strides[0], strides[2], rb, classes, ends_y, cell_x, low[1], down, inside)
    return start_a, end_a, start_b, end_b


@triton.jit
def _cells(
    sides, shared, along, mask, source, full, y, x, inside, ra, rb, classes, scale, ignore_index,
    KIND: tl.constexpr, MASK: tl.constexpr, ALIGN: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Weights and labels of a pixel of each cell, and what :func:`_softmax` says of its logits."""
    pixel = y * full[1] + x
    weight, ids = _weigh(source[0], mask, pixel, inside, classes, ignore_index, KIND, MASK)
    xa, ta = _between(sides[0], sides[1], along, ra, classes), _between(shared[0], shared[1], along, ra, classes)
    xb, tb = xa, ta
    if B > 0:
        xb, tb = _between(sides[2], sides[3], along, rb, classes), _between(shared[2], shared[3], along, rb, classes)
    ya, yb, weight = _resolve(
        source, full, ra, rb, classes, pixel, y, x, inside, weight, ids, ta, tb, KIND, ALIGN, B
    )  # fmt: skip
    return weight, ya, yb, _softmax(xa, xb, weight, scale, B)


@triton.jit(do_not_specialize=UNSPECIALISED_CELLS)
def sum_cells(
    logits, logits_image, logits_class, logits_row, logits_column, low_height, low_width, label, label_image,
    label_class, label_row, label_column, label_height, label_width, where, mask, height, width, classes, scale,
    label_scale, hit, miss, slack, ignore_index, partial, counts, blocks, fields,
    KIND: tl.constexpr, MASK: tl.constexpr, ALIGN: tl.constexpr, ALIGN_Y: tl.constexpr, ALIGN_X: tl.constexpr,
    WANT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums over every so many-th row of cells of an image; grid (programs, images)."""
    image = tl.program_id(1).to(tl.int64)
    pixels = image * height * width
    source = (label + image * label_image, where + pixels, label_class, label_row, label_column, label_height,
              label_width, label_scale, hit, miss, slack)  # fmt: skip
    low, full = (low_height, low_width), (height, width)
    ra, rb = tl.arange(0, A), A + tl.arange(0, B if B > 0 else 1)
    sums_a, sums_b = _zeros(A, BLOCK), _zeros(B if B > 0 else 1, BLOCK)
    count = tl.zeros((BLOCK,), tl.float32)
    step, shift, den = _axis(low_width, width, ALIGN_X)
    strips = tl.cdiv(low_width + 1, BLOCK)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        cell_y, cell_x = block // strips - 1, block % strips * BLOCK - 1 + tl.arange(0, BLOCK)
        first, stop = _first(cell_x, low_width, width, ALIGN_X), _first(cell_x + 1, low_width, width, ALIGN_X)
        for y in range(_first(cell_y, low_height, height, ALIGN_Y), _first(cell_y + 1, low_height, height, ALIGN_Y)):
            down = _share(y, cell_y, low_height, height, ALIGN_Y)
            sides = _row(logits + image * logits_image, (logits_class, logits_row, logits_column), low, cell_y, cell_x,
                         down, ra, rb, classes, B)  # fmt: skip
            shared = sides
            if KIND == TEACHER_SHARED:
                shared = _row(source[0], (label_class, label_row, label_column), low, cell_y, cell_x, down, ra, rb,
                              classes, B)  # fmt: skip
            for offset in range(0, tl.cdiv(den, step)):
                x = first + offset
                along = _share(x, cell_x, low_width, width, ALIGN_X)
                weight, ya, yb, found = _cells(
                    sides, shared, along, mask + pixels, source, full, y, x, x < stop, ra, rb, classes, scale,
                    ignore_index, KIND, MASK, ALIGN, B,
                )  # fmt: skip
                pa, pb, da, db, log_total = found
                count += weight
                sums_a = _add(sums_a, pa, da, ya, log_total, weight, BLOCK, WANT)
                if B > 0:
                    sums_b = _add(sums_b, pb, db, yb, log_total, weight, BLOCK, WANT)
    program = image * tl.num_programs(0) + tl.program_id(0)
    tl.store(counts + program, tl.sum(count, 0))
    _store(partial + program * fields * classes, sums_a, ra, classes, WANT)
    if B > 0:
        _store(partial + program * fields * classes, sums_b, rb, classes, WANT)


@triton.jit
def _join(start, end, scratch, rows, BLOCK: tl.constexpr):
    """The end of each cell plus the start of the next, which is the same low pixel; the last cell has no next.

    The next cell is in another thread: ``scratch`` is this program's own memory, to pass it on.
    """
    lanes = tl.arange(0, BLOCK)
    # The odd distance of rows keeps the compiler from using vectors, for which it would lay out all tiles differently.
    places = scratch + rows[:, None] * (BLOCK + 1) + lanes[None, :]
    tl.store(places, start)
    tl.debug_barrier()
    joined = end + tl.load(places + 1, mask=(lanes < BLOCK - 1)[None, :] & (rows >= 0)[:, None], other=0.0)
    tl.debug_barrier()
    return joined


@triton.jit
def _spread(start, end, g, share):
    """The sums at both ends of an interval with the part of g that belongs to each."""
    return start + g * (1 - share), end + g * share


@triton.jit(do_not_specialize=UNSPECIALISED_CELLS)
def gradient_cells(
    logits, logits_image, logits_class, logits_row, logits_column, low_height, low_width, label, label_image,
    label_class, label_row, label_column, label_height, label_width, where, mask, height, width, classes, scale,
    label_scale, hit, miss, slack, ignore_index, upstream, gradient, gradient_image, gradient_class, gradient_row,
    gradient_column, scratch, cell_rows,
    KIND: tl.constexpr, MASK: tl.constexpr, ALIGN: tl.constexpr, ALIGN_Y: tl.constexpr, ALIGN_X: tl.constexpr,
    WANT: tl.constexpr, ERROR_SCALED: tl.constexpr, A: tl.constexpr, B: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK - 1 columns and ``cell_rows`` rows of low pixels; grid (columns, rows, images).

    A program alone writes what it owns. It computes the cells on both sides of its pixels, so that a cell between two
    programs is computed twice; down the rows, a cell's lower ends wait in registers for the next row.
    """
    image = tl.program_id(2).to(tl.int64)
    pixels = image * height * width
    source = (label + image * label_image, where + pixels, label_class, label_row, label_column, label_height,
              label_width, label_scale, hit, miss, slack)  # fmt: skip
    low, full = (low_height, low_width), (height, width)
    ra, rb = tl.arange(0, A), A + tl.arange(0, B if B > 0 else 1)
    fields = tl.num_programs(2) * classes
    by_a = _upstream(upstream + image * classes, fields, ra, classes, WANT)
    by_b = _upstream(upstream + image * classes, fields, rb, classes, WANT)
    program = (image * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    scratch += program * (A + B) * (BLOCK + 1)
    gradient += image * gradient_image
    cell_x = tl.program_id(0) * (BLOCK - 1) - 1 + tl.arange(0, BLOCK)
    first, stop = _first(cell_x, low_width, width, ALIGN_X), _first(cell_x + 1, low_width, width, ALIGN_X)
    owned = (cell_x + 1 < low_width) & (tl.arange(0, BLOCK) < BLOCK - 1)
    step, shift, den = _axis(low_width, width, ALIGN_X)
    zero_a, zero_b = tl.zeros((A, BLOCK), tl.float32), tl.zeros((B if B > 0 else 1, BLOCK), tl.float32)
    below_start_a, below_end_a, below_start_b, below_end_b = zero_a, zero_a, zero_b, zero_b
    top = tl.program_id(1) * cell_rows
    for cell_y in range(top - 1, tl.minimum(top + cell_rows, low_height)):
        here_start_a, here_end_a, here_start_b, here_end_b = below_start_a, below_end_a, below_start_b, below_end_b
        below_start_a, below_end_a, below_start_b, below_end_b = zero_a, zero_a, zero_b, zero_b
        for y in range(_first(cell_y, low_height, height, ALIGN_Y), _first(cell_y + 1, low_height, height, ALIGN_Y)):
            down = _share(y, cell_y, low_height, height, ALIGN_Y)
            sides = _row(logits + image * logits_image, (logits_class, logits_row, logits_column), low, cell_y, cell_x,
                         down, ra, rb, classes, B)  # fmt: skip
            shared = sides
            if KIND == TEACHER_SHARED:
                shared = _row(source[0], (label_class, label_row, label_column), low, cell_y, cell_x, down, ra, rb,
                              classes, B)  # fmt: skip
            start_a, end_a, start_b, end_b = zero_a, zero_a, zero_b, zero_b
            for offset in range(0, tl.cdiv(den, step)):
                x = first + offset
                along = _share(x, cell_x, low_width, width, ALIGN_X)
                weight, ya, yb, found = _cells(
                    sides, shared, along, mask + pixels, source, full, y, x, x < stop, ra, rb, classes, scale,
                    ignore_index, KIND, MASK, ALIGN, B,
                )  # fmt: skip
                pa, pb, da, db, log_total = found
                ga, gb = _pull_back(pa, pb, ya, yb, weight, by_a, by_b, WANT, ERROR_SCALED, B)
                start_a, end_a = _spread(start_a, end_a, ga, along[None, :])
                if B > 0:
                    start_b, end_b = _spread(start_b, end_b, gb, along[None, :])
            here_start_a, below_start_a = _spread(here_start_a, below_start_a, start_a, down)
            here_end_a, below_end_a = _spread(here_end_a, below_end_a, end_a, down)
            if B > 0:
                here_start_b, below_start_b = _spread(here_start_b, below_start_b, start_b, down)
                here_end_b, below_end_b = _spread(here_end_b, below_end_b, end_b, down)
        if cell_y >= top:
            row = _ends(cell_y, low_height, gradient_row)[0]
            column = (cell_x + 1).to(tl.int64) * gradient_column
            joined = _join(here_start_a, here_end_a, scratch, ra, BLOCK)
            _write(gradient, gradient_class, ra, classes, row + column, owned, joined)
            if B > 0:
                joined = _join(here_start_b, here_end_b, scratch, rb, BLOCK)
                _write(gradient, gradient_class, rb, classes, row + column, owned, joined)
