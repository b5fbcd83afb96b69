pub mod forward;
pub mod lab;
pub mod packet;
pub mod route;
pub mod sys;
