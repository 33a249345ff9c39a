"""What mmguard costs: each module is one `mmguard bench` command, or what it measures with."""
