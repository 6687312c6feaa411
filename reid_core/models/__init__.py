"""Networks: what turns pixels and words into features.

clip        loads any open_clip model; its text tower takes token embeddings
towers      image towers opened up: positions for any grid, last stride, the pieces of a ResNet
encoders    the two-stem image encoder: one stem per modality, shared trunk, GeM, neck
text_image  the text-image encoder: both towers, upright images
prompts     learnable tokens inside a fixed sentence, one row per class
"""
