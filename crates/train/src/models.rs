//! Networks like VGG and ResNet for small images, of any width.
//!
//! Source: Simonyan and Zisserman (2015); He et al. (2016), the form for images of 32 pixels.

use crate::TrainError;
use crate::net::{Builder, Module, Network};

/// Which family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Three pairs of 3×3 convolutions, each pair twice as wide and followed by a maximum over 2×2; one linear layer.
    Vgg,
    /// A 3×3 convolution, three residual blocks of two convolutions with 1×1 shortcuts where the width doubles, a mean, one linear
    /// layer.
    Resnet,
}

impl std::str::FromStr for Architecture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "vgg" => Ok(Self::Vgg),
            "resnet" => Ok(Self::Resnet),
            _ => Err(format!("architecture {text}: vgg or resnet is wanted")),
        }
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vgg => "vgg",
            Self::Resnet => "resnet",
        })
    }
}

impl Architecture {
    /// The network for images of this shape, whose first convolution has `width` channels.
    ///
    /// # Errors
    /// [`TrainError::Module`] where the images are too small for it.
    pub fn network(
        self,
        image: [usize; 3],
        classes: usize,
        width: usize,
        seed: u64,
    ) -> Result<Network, TrainError> {
        let mut b = Builder::new(image);
        let mut x = b.input();
        match self {
            Self::Vgg => {
                for block in 0..3 {
                    for half in ["a", "b"] {
                        x = normed(
                            &mut b,
                            &format!("block{block}{half}"),
                            x,
                            (width << block, 3, 1),
                        )?;
                        x = b.push(&format!("block{block}{half}.relu"), Module::Relu, &[x])?;
                    }
                    x = b.push(
                        &format!("block{block}.pool"),
                        Module::MaxPool { size: 2 },
                        &[x],
                    )?;
                }
                x = b.push("flatten", Module::Flatten, &[x])?;
            }
            Self::Resnet => {
                x = normed(&mut b, "stem", x, (width, 3, 1))?;
                x = b.push("stem.relu", Module::Relu, &[x])?;
                for block in 0..3 {
                    let name = format!("block{block}");
                    let stride = if block == 0 { 1 } else { 2 };
                    let wide = width << block;
                    let mut y = normed(&mut b, &format!("{name}a"), x, (wide, 3, stride))?;
                    y = b.push(&format!("{name}a.relu"), Module::Relu, &[y])?;
                    y = normed(&mut b, &format!("{name}b"), y, (wide, 3, 1))?;
                    if block > 0 {
                        x = normed(&mut b, &format!("{name}s"), x, (wide, 1, stride))?;
                    }
                    x = b.push(&format!("{name}.add"), Module::Add, &[x, y])?;
                    x = b.push(&format!("{name}.relu"), Module::Relu, &[x])?;
                }
                x = b.push("mean", Module::GlobalPool, &[x])?;
            }
        }
        x = b.push("head", Module::Linear { outputs: classes }, &[x])?;
        b.finish(x, seed)
    }
}

/// A convolution of so many outputs, kernel and stride, and its batch norm.
fn normed(
    b: &mut Builder,
    name: &str,
    x: usize,
    (outputs, kernel, stride): (usize, usize, usize),
) -> Result<usize, TrainError> {
    let convolution = Module::Conv {
        outputs,
        kernel,
        stride,
        pad: kernel / 2,
        bias: false,
    };
    let x = b.push(&format!("{name}.conv"), convolution, &[x])?;
    b.push(&format!("{name}.norm"), Module::BatchNorm, &[x])
}
