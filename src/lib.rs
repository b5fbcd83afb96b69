pub mod config;
pub mod forward;
pub mod packet;
pub mod route;
pub mod store;
