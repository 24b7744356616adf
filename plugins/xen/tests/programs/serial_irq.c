/* serial_irq TTY NUMBER: let a serial port's driver use this interrupt; 0 has it poll (Linux uapi, serial.h). */
#include <fcntl.h>
#include <linux/serial.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>

int main(int count, char **arguments)
{
    struct serial_struct port;
    int fd = count == 3 ? open(arguments[1], O_RDWR | O_NOCTTY | O_NONBLOCK) : -1;
    if (fd < 0 || ioctl(fd, TIOCGSERIAL, &port)) {
        perror("TIOCGSERIAL");
        return 1;
    }
    port.irq = atoi(arguments[2]);
    if (ioctl(fd, TIOCSSERIAL, &port)) {
        perror("TIOCSSERIAL");
        return 1;
    }
    return 0;
}
