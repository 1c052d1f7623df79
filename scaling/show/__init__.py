"""What people see: tables in a terminal, pictures, reports; and the plain data of plans and simulations."""
