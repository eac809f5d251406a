"""Are the numbers still those of PyTorch?"""
