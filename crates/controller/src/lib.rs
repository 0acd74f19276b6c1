//! Carries objects into the model and its answers back to where objects are kept.
