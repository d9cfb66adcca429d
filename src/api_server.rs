//! Kubernetes' API server: how it is reached, how objects are followed there, and what went wrong, in words.

mod access;
mod body;
mod connect;
mod follow;
mod pool;
mod trouble;

pub use connect::{Door, EachTime, LastAnswer, Opened};
pub use follow::{Followed, Observer, follow};
pub use pool::Pool;
pub use trouble::{Action, Place, Target, explain};
