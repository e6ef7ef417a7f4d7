use super::*;

/// A sum over all taps of one output, straight from the definition in `linear::Shape`.
fn definition(layer: &FloatLinear, x: &[f32]) -> Vec<f64> {
    let shape = layer.shape();
    match shape {
        Shape::Conv(conv) => {
            let [height, width] = shape.output_spatial();
            let ins = conv.in_channels / conv.groups;
            let mut y = Vec::new();
            for channel in 0..conv.out_channels {
                let group = channel / (conv.out_channels / conv.groups);
                for (row, column) in (0..height).flat_map(|r| (0..width).map(move |c| (r, c))) {
                    let mut sum = f64::from(layer.bias()[channel]);
                    for tap in 0..shape.taps() {
                        let kx = tap % conv.kernel[1];
                        let ky = tap / conv.kernel[1] % conv.kernel[0];
                        let plane = group * ins + tap / (conv.kernel[0] * conv.kernel[1]);
                        let at = [
                            (row * conv.stride[0] + ky * conv.dilation[0])
                                .checked_sub(conv.pad_begin[0]),
                            (column * conv.stride[1] + kx * conv.dilation[1])
                                .checked_sub(conv.pad_begin[1]),
                        ];
                        let [Some(line), Some(pixel)] = at else {
                            continue;
                        };
                        if line < conv.input[0] && pixel < conv.input[1] {
                            let x = x[(plane * conv.input[0] + line) * conv.input[1] + pixel];
                            let w = layer.weights()[channel * shape.taps() + tap];
                            sum += f64::from(x) * f64::from(w);
                        }
                    }
                    y.push(sum);
                }
            }
            y
        }
        Shape::MatMul(m) => {
            let mut y = Vec::new();
            for (row, column) in
                (0..m.groups * m.rows).flat_map(|r| (0..m.columns).map(move |c| (r, c)))
            {
                let group = row / m.rows;
                let terms = (0..m.inner).map(|k| {
                    let w = layer.weights()[(group * m.inner + k) * m.columns + column];
                    f64::from(x[row * m.inner + k]) * f64::from(w)
                });
                y.push(f64::from(layer.bias()[group * m.columns + column]) + terms.sum::<f64>());
            }
            y
        }
    }
}

/// Numbers in [−1, 1), the same in every run.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 8) as f32 / (1 << 23) as f32 - 1.0)
    };
    std::iter::repeat_n((), count)
        .scan(seed, |state, ()| next(state))
        .collect()
}

fn layer(shape: Shape) -> FloatLinear {
    let (weights, bias) = (shape.weights(), channels(&shape));
    FloatLinear::new(shape, numbers(1, weights), numbers(2, bias)).unwrap()
}

fn shapes() -> Vec<Shape> {
    let conv = |groups, channels: [usize; 2], input, kernel, stride, dilation, pads: [usize; 4]| {
        Shape::conv(Conv {
            groups,
            in_channels: channels[0],
            out_channels: channels[1],
            input,
            kernel,
            stride,
            dilation,
            pad_begin: [pads[0], pads[1]],
            pad_end: [pads[2], pads[3]],
        })
        .unwrap()
    };
    let matmul = |groups, rows, inner, columns| {
        Shape::matmul(MatMul {
            groups,
            rows,
            inner,
            columns,
        })
        .unwrap()
    };
    vec![
        conv(1, [3, 8], [7, 9], [3, 3], [1, 1], [1, 1], [1, 1, 1, 1]),
        conv(1, [3, 5], [11, 8], [7, 3], [2, 3], [1, 1], [3, 0, 2, 2]),
        conv(1, [4, 6], [9, 9], [3, 3], [1, 2], [2, 3], [2, 1, 0, 4]),
        conv(1, [5, 7], [4, 6], [1, 1], [1, 1], [1, 1], [0; 4]),
        conv(1, [5, 7], [6, 6], [1, 1], [2, 2], [1, 1], [0; 4]),
        conv(6, [6, 6], [6, 5], [3, 3], [2, 1], [1, 1], [1, 1, 1, 1]),
        conv(2, [6, 8], [5, 5], [3, 3], [1, 1], [1, 1], [0, 1, 2, 3]),
        // A tap that never meets the image.
        conv(1, [1, 4], [1, 2], [5, 5], [1, 1], [2, 2], [9, 9, 9, 9]),
        // Several bands.
        conv(1, [512, 4], [24, 24], [3, 3], [1, 1], [1, 1], [1, 1, 1, 1]),
        matmul(1, 1, 70, 130),
        matmul(1, 9, 33, 200),
        matmul(3, 5, 8, 6),
        matmul(2, 3, 4, 5),
    ]
}

#[test]
fn layers_equal_their_definition_within_the_tolerance() {
    for shape in shapes() {
        let layer = layer(shape.clone());
        let x = numbers(3, shape.inputs());
        let definition = definition(&layer, &x);
        let witness = Witness::new(&layer, &x);
        for ((y, sum), magnitude) in definition
            .iter()
            .zip(&witness.sums)
            .zip(&witness.magnitudes)
        {
            assert!((y - sum).abs() <= 1e-12 * magnitude, "{shape:?}");
        }
        let mut y = vec![0.0; shape.outputs()];
        layer.apply(&x, &mut y);
        assert_eq!(witness.refutes(&y), None, "{shape:?}");
    }
}

#[test]
fn a_part_is_what_the_whole_has_there() {
    for shape in shapes() {
        let layer = layer(shape.clone());
        let x = numbers(5, shape.inputs());
        let whole = Witness::new(&layer, &x);
        let all = shape.outputs();
        for part in [0..1, all - 1..all, all / 3..all / 2 + 1, 1..all, 0..0] {
            let some = Witness::of(&layer, &x, part.clone());
            assert_eq!(some.sums, whole.sums[part.clone()], "{shape:?}");
            assert_eq!(some.magnitudes, whole.magnitudes[part], "{shape:?}");
        }
    }
}

#[test]
fn an_answer_beyond_the_tolerance_is_refuted_where_it_is() {
    for shape in shapes() {
        let layer = layer(shape.clone());
        let x = numbers(4, shape.inputs());
        let witness = Witness::new(&layer, &x);
        let mut y: Vec<f32> = witness.sums.iter().map(|sum| *sum as f32).collect();
        let at = y.len() / 2;
        let tolerance = witness.tolerance(at) + f64::from(y[at].abs()) * 2e-7;
        y[at] = (witness.sums[at] + 1.1 * tolerance) as f32;
        assert_eq!(witness.refutes(&y), Some(at), "{shape:?}");
        y[at] = f32::NAN;
        assert_eq!(witness.refutes(&y), Some(at), "{shape:?}");
    }
}

#[test]
fn gamma_is_that_of_the_book() {
    assert_eq!(gamma(0), 0.0);
    assert!((gamma(1) / f64::from(f32::EPSILON) - 0.5).abs() < 1e-6);
    assert_eq!(gamma(1 << 24), f64::INFINITY);
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let shape = shapes().remove(0);
    let new = |weights, bias| FloatLinear::new(shape.clone(), vec![0.0; weights], vec![0.0; bias]);
    assert!(new(shape.weights(), channels(&shape)).is_ok());
    assert!(new(shape.weights() - 1, channels(&shape)).is_err());
    assert!(new(shape.weights(), channels(&shape) + 1).is_err());
}
