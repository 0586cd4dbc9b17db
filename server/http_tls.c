#define _DEFAULT_SOURCE /* explicit_bzero() */

#include "server/http_tls.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

enum { MAX_FILE = 1 << 20 };

static int read_file(char **ret, const char *flag, const char *name, struct error *err) {
    FILE *f = fopen(name, "re");
    if (!f) return error_set(err, -errno, "%s: %.200s: %s", flag, name, strerror(errno));
    char *bytes = malloc(MAX_FILE + 1);
    size_t n = bytes ? fread(bytes, 1, MAX_FILE + 1, f) : 0;
    int code = ferror(f) ? -EIO : 0;
    fclose(f);
    if (!bytes) return error_set(err, -ENOMEM, "%s: out of memory", flag);
    if (code < 0 || n > MAX_FILE) {
        free(bytes);
        return error_set(err, code < 0 ? code : -EFBIG, "%s: %.200s cannot be read", flag, name);
    }
    bytes[n] = 0;
    *ret = bytes;
    return 0;
}

static int check(const struct http_tls *tls, struct error *err) {
    gnutls_certificate_credentials_t credentials;
    const gnutls_datum_t certificate = {(unsigned char *)tls->certificate,
                                        (unsigned)strlen(tls->certificate)};
    const gnutls_datum_t key = {(unsigned char *)tls->key, (unsigned)strlen(tls->key)};
    if (gnutls_certificate_allocate_credentials(&credentials) < 0)
        return error_set(err, -ENOMEM, "TLS: out of memory");
    int r =
        gnutls_certificate_set_x509_key_mem(credentials, &certificate, &key, GNUTLS_X509_FMT_PEM);
    gnutls_certificate_free_credentials(credentials);
    if (r < 0) return error_set(err, -EINVAL, "--tls-cert, --tls-key: %s", gnutls_strerror(r));
    return 0;
}

int http_tls_open(struct http_tls *ret, const char *certificate, const char *key,
                  struct error *err) {
    struct http_tls tls = {0};
    if (!certificate != !key)
        return error_set(err, -EINVAL, "--tls-cert and --tls-key belong together");
    if (certificate) {
        int r = read_file(&tls.certificate, "--tls-cert", certificate, err);
        if (r == 0) r = read_file(&tls.key, "--tls-key", key, err);
        if (r == 0) r = check(&tls, err);
        if (r < 0) {
            http_tls_close(&tls);
            return r;
        }
    }
    *ret = tls;
    return 0;
}

void http_tls_close(struct http_tls *tls) {
    if (tls->key) explicit_bzero(tls->key, strlen(tls->key));
    free(tls->key);
    free(tls->certificate);
    *tls = (struct http_tls){0};
}
