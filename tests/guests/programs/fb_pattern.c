/* Draws a picture to a frame buffer device: fb_pattern /dev/fb0 SEED
 *
 * The colour of each pixel depends on its place and the seed, so that a shifted, torn or stale row shows. The test
 * computes the same picture. Prints the mode as name=value.
 */

#include <fcntl.h>
#include <linux/fb.h>
#include <linux/kd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void need(int holds, const char *what)
{
    if (!holds) {
        perror(what);
        exit(1);
    }
}

static uint32_t colour(uint32_t x, uint32_t y, uint32_t seed)
{
    uint32_t mixed = (x + (y << 16)) * 2654435761u + seed;
    return (mixed ^ (mixed >> 15)) & 0xffffff;
}

int main(int count, char **words)
{
    need(count == 3, "fb_pattern DEVICE SEED");
    uint32_t seed = (uint32_t)strtoul(words[2], NULL, 0);
    int terminal = open("/dev/tty0", O_RDWR | O_NOCTTY | O_CLOEXEC);
    need(terminal >= 0 && !ioctl(terminal, KDSETMODE, KD_GRAPHICS), "stopping the console's cursor and text");
    int display = open(words[1], O_RDWR | O_CLOEXEC);
    need(display >= 0, words[1]);
    struct fb_var_screeninfo mode;
    struct fb_fix_screeninfo fixed;
    need(!ioctl(display, FBIOGET_VSCREENINFO, &mode) && !ioctl(display, FBIOGET_FSCREENINFO, &fixed), "the mode");
    mode.activate = FB_ACTIVATE_NOW | FB_ACTIVATE_FORCE; /* the kernel sets no mode before somebody asks for it */
    need(!ioctl(display, FBIOPUT_VSCREENINFO, &mode), "setting the mode");
    printf("width=%u\nheight=%u\ndepth=%u\nstride=%u\ndriver=%.16s\n", mode.xres, mode.yres, mode.bits_per_pixel,
           fixed.line_length, fixed.id);
    need(mode.bits_per_pixel == 32, "32 bits per pixel");
    size_t pitch = fixed.line_length / sizeof(uint32_t), size = (size_t)fixed.line_length * mode.yres;
    uint32_t *picture = calloc(mode.yres, fixed.line_length);
    need(picture != NULL, "a picture");
    for (uint32_t y = 0; y < mode.yres; y++) {
        for (uint32_t x = 0; x < mode.xres; x++) {
            picture[y * pitch + x] = colour(x, y, seed);
        }
    }
    /* At once: of a write that is exactly one row, Linux 6.12 takes an empty rectangle to the display. */
    need(write(display, picture, size) == (ssize_t)size, "drawing");
    free(picture);
    close(display);
    close(terminal);
    return 0;
}
