//! What an agent reads in a workspace and leaves there, as the OpenWork API shows it. Everything lies in the workspace
//! itself, is opened beneath its root only, and may be changed by the workload at any moment. Knows nothing of HTTP.

pub mod trays;
