//! Files of `diffusers`, `transformers` and `peft`: read as they read them, and written so that they can be read there.

mod adapters;
mod drawing;
mod folder;
mod frozen;
mod lora_file;
mod model_folder;
mod pipeline;
mod ruined;
mod stored_as;
mod text;
