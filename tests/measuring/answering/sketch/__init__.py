"""A tiny model whose code comes with its weights, with the interface that Keye-VL's published code has.

Configuration, model, processor and image processor are files beside the weights, named by `auto_map`; there is no video
processor: frames go through the image processor, one a grid step, and the processor turns `fps` into seconds a step.
"""
