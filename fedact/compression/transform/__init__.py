"""Transform coding of activations: channel basis, cosine transform, step sizes, Rice code."""
