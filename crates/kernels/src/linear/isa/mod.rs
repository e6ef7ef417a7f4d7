//! The variants: one file for each instruction set, reached through its token.

pub(super) mod avx2;
pub(super) mod avx512;

#[cfg(test)]
mod tests {
    use crate::isa::Isa;
    use crate::linear::vectors::{Scratch, Vectors};
    use crate::linear::{Conv, Linear, MatMul, Shape, Weights, wipe};

    /// Limbs that this thread's buffers hold.
    fn held() -> usize {
        fn of<V: Vectors>(token: V) -> usize {
            token.scratch(|Scratch { pixels, words, .. }| pixels.len() + words.len())
        }
        let of = |isa| match isa {
            Isa::Scalar | Isa::Portable => 0,
            Isa::Avx2(token) => of(token),
            Isa::Avx512(token) => of(token),
        };
        Isa::available().into_iter().map(of).sum()
    }

    /// Bytes other than zero in this thread's buffers, up to their capacity.
    ///
    /// # Safety
    /// All of it must have been written, as [`wipe`] does.
    unsafe fn traces() -> usize {
        fn of<T>(limbs: &[T], capacity: usize) -> usize {
            let first: *const u8 = limbs.as_ptr().cast();
            // SAFETY: the caller's promise; limbs are arrays of integers without padding.
            let bytes = unsafe { std::slice::from_raw_parts(first, capacity * size_of::<T>()) };
            bytes.iter().filter(|byte| **byte != 0).count()
        }
        fn both<V: Vectors>(token: V) -> usize {
            token.scratch(|Scratch { pixels, words, .. }| {
                of(pixels, pixels.capacity()) + of(words, words.capacity())
            })
        }
        let of = |isa| match isa {
            Isa::Scalar | Isa::Portable => 0,
            Isa::Avx2(token) => both(token),
            Isa::Avx512(token) => both(token),
        };
        Isa::available().into_iter().map(of).sum()
    }

    /// A convolution and a product, large and small, with words that have no byte of zero.
    fn apply_all() {
        let conv = |channels, side| {
            let conv = Conv {
                groups: 1,
                in_channels: channels,
                out_channels: 40,
                input: [side, side],
                kernel: [3, 3],
                stride: [1, 1],
                dilation: [1, 1],
                pad_begin: [1, 1],
                pad_end: [1, 1],
            };
            Shape::conv(conv).unwrap()
        };
        let matmul = |inner| {
            let matmul = MatMul {
                groups: 1,
                rows: 60,
                inner,
                columns: 70,
            };
            Shape::matmul(matmul).unwrap()
        };
        for shape in [conv(64, 14), matmul(400), conv(5, 6), matmul(9)] {
            let weights = Weights::new(vec![vec![3; shape.weights()]], 0).unwrap();
            let x = vec![0x1234_5678; shape.inputs()];
            let mut y = vec![0; shape.outputs()];
            for isa in Isa::available() {
                let linear = Linear::with_isa(isa, shape.clone(), &weights).unwrap();
                linear.apply(&x, &mut y);
            }
        }
    }

    #[test]
    fn wiping_leaves_no_limb_behind() {
        apply_all();
        if Isa::available().len() > 2 {
            assert!(held() > 0);
        } else {
            println!("skipped: avx2, avx512 (this CPU lacks them)");
        }
        wipe();
        // SAFETY: wiped just now.
        assert_eq!((held(), unsafe { traces() }), (0, 0));
    }

    #[cfg(feature = "parallel")]
    #[test]
    fn wiping_reaches_every_thread_of_the_pool() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3);
        pool.build().unwrap().install(|| {
            apply_all();
            let by_pool: usize = rayon::broadcast(|_| held()).into_iter().sum();
            assert!(by_pool > 0 || Isa::available().len() == 2);
            wipe();
            // SAFETY: wiped just now.
            let left = rayon::broadcast(|_| (held(), unsafe { traces() }));
            assert!(left.iter().all(|left| *left == (0, 0)), "{left:?}");
        });
    }
}
