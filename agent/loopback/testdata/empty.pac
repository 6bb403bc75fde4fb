// Portvakt: only the approved apps take this road.
var apps = {
};
function FindProxyForURL(url, host) {
  host = host.toLowerCase();
  if (host.charAt(host.length - 1) === ".") {
    host = host.substring(0, host.length - 1);
  }
  return Object.prototype.hasOwnProperty.call(apps, host) ? "PROXY 127.0.0.1:8118" : "DIRECT";
}
