//! Owns named weights. Refuses to hold gradients (see [`crate::Gradients`]) and optimizer state.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// A named weight. Clones refer to the same weight. Frozen when new.
#[derive(Clone)]
pub struct Param(Arc<Inner>);

struct Inner {
    id: u64,
    name: String,
    value: RwLock<Tensor>,
    trainable: AtomicBool,
}

impl Param {
    /// A frozen weight. Its id is larger than that of every weight made before.
    pub fn new(name: impl Into<String>, value: Tensor) -> Param {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Param(Arc::new(Inner { id, name: name.into(), value: RwLock::new(value), trainable: AtomicBool::new(false) }))
    }

    /// The name it was made with.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A number that no other weight of this process has; gradients are ordered by it.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The current value; shares the buffer.
    pub fn value(&self) -> Tensor {
        self.0.value.read().clone()
    }

    /// Replaces the value. The shape must stay; the dtype may change.
    pub fn set_value(&self, value: Tensor) -> Result<()> {
        let mut slot = self.0.value.write();
        if slot.shape() != value.shape() {
            return Err(Error::shape("set_value", "value", format!("{:?}", slot.shape()), value.shape()));
        }
        *slot = value;
        Ok(())
    }

    /// The shape of the value.
    pub fn shape(&self) -> Vec<usize> {
        self.0.value.read().shape().to_vec()
    }

    /// The dtype of the value.
    pub fn dtype(&self) -> DType {
        self.0.value.read().dtype()
    }

    /// Whether operators record a gradient for it.
    pub fn is_trainable(&self) -> bool {
        self.0.trainable.load(Ordering::Relaxed)
    }

    /// Switches recording of its gradient on or off for operators that run from now on.
    pub fn set_trainable(&self, trainable: bool) {
        self.0.trainable.store(trainable, Ordering::Relaxed);
    }

    /// Changes the elements in place; copies them first when another tensor shares the buffer. f32 only.
    pub fn update(&self, f: impl FnOnce(&mut [f32])) -> Result<()> {
        let mut slot = self.0.value.write();
        if !slot.is_unique() {
            *slot = slot.clone().into_unique()?;
        }
        f(slot.f32s_mut()?);
        Ok(())
    }
}

impl fmt::Debug for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trainable = if self.is_trainable() { "trainable" } else { "frozen" };
        write!(f, "Param({} {:?} {trainable})", self.name(), self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_leaves_shared_values_alone() {
        let p = Param::new("w", Tensor::from_f32(&[1.0, 2.0], &[2]).unwrap());
        let before = p.value();
        p.update(|w| w[0] = 5.0).unwrap();
        assert_eq!(before.f32s().unwrap(), [1.0, 2.0]);
        assert_eq!(p.value().f32s().unwrap(), [5.0, 2.0]);
        assert!(p.set_value(Tensor::zeros(&[3], DType::F32).unwrap()).is_err());
        assert!(!p.is_trainable());
    }
}
