mod damage;
mod decoders;
mod fixture;
mod heads;
mod index;
mod repository;
mod support;
mod trees;
