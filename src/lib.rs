pub mod forward;
pub mod packet;
pub mod route;
