"""everycent: order, payment and inventory transactions on Temporal, exact to the cent."""
