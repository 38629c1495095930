raise KeyError('lost')
