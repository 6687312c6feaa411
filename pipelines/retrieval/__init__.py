"""What a trained model is used for: embedding, searching, exporting."""
