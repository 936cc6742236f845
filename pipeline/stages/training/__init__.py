"""Training by gradients: settings, loop, augmentation, teacher, block-wise distillation."""
