"""The optimal batch size against loss, and L(N, D) from decay branches."""
