//! Files of `diffusers`, `transformers` and `peft`: read as they read them, and written so that they can be read there.

mod adapters;
mod comfyui;
mod drawing;
mod folder;
mod frozen;
mod lora_file;
mod model_folder;
mod newest;
mod pipeline;
mod recognized;
mod ruined;
mod stored_as;
mod text;
