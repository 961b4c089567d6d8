//! Pooling and resizing of grids of one channel in plain loops.

/// Means of windows.
pub(super) fn avg(x: &[f32], n: usize, from: [usize; 2], to: [usize; 2]) -> Vec<f32> {
    let mut y = vec![];
    for grid in x.chunks(from[0] * from[1]).take(n) {
        for i in 0..to[0] {
            for j in 0..to[1] {
                let (mut sum, mut count) = (0.0, 0.0);
                for a in i * from[0] / to[0]..((i + 1) * from[0]).div_ceil(to[0]) {
                    for b in j * from[1] / to[1]..((j + 1) * from[1]).div_ceil(to[1]) {
                        sum += grid[a * from[1] + b];
                        count += 1.0;
                    }
                }
                y.push(sum / count);
            }
        }
    }
    y
}

/// Bilinear interpolation between cell centres, clamped at the edges.
pub(super) fn bilinear(x: &[f32], n: usize, from: [usize; 2], to: [usize; 2]) -> Vec<f32> {
    let mut y = vec![];
    for grid in x.chunks(from[0] * from[1]).take(n) {
        let at = |i: isize, j: isize| {
            let i = i.clamp(0, from[0] as isize - 1) as usize;
            let j = j.clamp(0, from[1] as isize - 1) as usize;
            grid[i * from[1] + j]
        };
        for i in 0..to[0] {
            for j in 0..to[1] {
                let u = (i as f32 + 0.5) * from[0] as f32 / to[0] as f32 - 0.5;
                let v = (j as f32 + 0.5) * from[1] as f32 / to[1] as f32 - 0.5;
                let (a, b) = (u.floor(), v.floor());
                let (p, q) = (u - a, v - b);
                let (a, b) = (a as isize, b as isize);
                let top = at(a, b) * (1.0 - q) + at(a, b + 1) * q;
                let bottom = at(a + 1, b) * (1.0 - q) + at(a + 1, b + 1) * q;
                y.push(top * (1.0 - p) + bottom * p);
            }
        }
    }
    y
}
