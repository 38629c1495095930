raise KeyError("lost")
